"""What is particular to one pass of reconstruction over the network; all the rest is the engine's.

A method overrides what differs. As they stand, the hooks learn activation step sizes alone, unit by unit, under
QDrop's dropping, from the squared error to the floating-point output.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq.common.bits import BitWidth
from ptmq.common.settings import ReconstructionSettings
from ptmq.methods.mixer import choose
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import Unit
from ptmq.quantization.fake_quantization import keep_mask
from ptmq.quantization.rounding import Relaxation
from ptmq.reconstruction.features import Features
from ptmq.reconstruction.losses import distance


class Phase:
    """The hooks that the engine calls.

    widths: those whose features are streamed from unit to unit · power: p of the error |x - target|^p.
    """

    settings: ReconstructionSettings
    widths: Sequence[BitWidth]
    power: float = 2.0

    def parts(self, unit: Unit) -> Sequence[Unit]:
        """What of a unit is learned at a time, in order: the whole of it, or `unit.by_layer()`.

        Layer by layer, the step size behind a residual sum is not learned: it belongs to no layer.
        """
        return [unit]

    def relax(self, layer: QuantizedLayer) -> Relaxation | None:
        """The learnable rounding of a layer; None leaves its weights as they are."""
        return None

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """The widths at which this step runs the unit."""
        return self.widths

    def mix(self, fp: Tensor, quantized: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
        """The unit's input for each drawn width, from the FP feature and the features at those widths.

        Here FP and quantized features are mixed element-wise, each width with its own (QDrop); `keep: 1` keeps
        the quantized ones.
        """
        if self.settings.keep == 1:
            return quantized
        mask = keep_mask(fp, self.settings.keep, generator)
        return [choose(mask, feature, fp) for feature in quantized]

    def loss(self, target: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The unit's loss from its FP output and its outputs at the drawn widths, a scalar.

        Not asked for stem and head, which always take the plain error with `power`.
        """
        return sum(distance(output, target, self.power) for output in outputs)

    def importance(self, unit: Unit, later: Sequence[Unit], features: Features) -> Tensor | None:
        """Weights of the squared error, of the target's shape, in place of `loss` and `power`; None to take those.

        For phases that learn whole units: `later` are the units after this one.
        """
        return None

    def regularizer(self, relaxations: Sequence[Relaxation], step: int) -> Tensor | float:
        """What is added to the loss at `step`, counted from 1."""
        return 0.0


class StepSizes(Phase):
    """BRECQ's second pass: activation step sizes alone, for weights that are quantized already, with p = 2.4."""

    power = 2.4

    def __init__(self, settings: ReconstructionSettings, widths: Sequence[BitWidth]):
        self.settings, self.widths = settings, widths

    def parts(self, unit):
        """The unit, where it has anything to learn."""
        return [unit] if unit.quantizers else []
