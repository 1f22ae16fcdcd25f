"""What is particular to one pass of reconstruction over the network; all the rest is the engine's.

A method has passes. As it stands, a pass learns activation step sizes alone, unit by unit, under QDrop's dropping, from
the squared error to the floating-point output; a subclass overrides the hooks that differ.
"""

from collections.abc import MutableMapping, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptmq.common.bits import BitWidth
from ptmq.network.layers import GridLayer
from ptmq.network.model import Unit
from ptmq.quantization.fake_quantization import choose, keep_mask
from ptmq.quantization.rounding import AdaptiveRounding, Relaxation
from ptmq.reconstruction.features import Feature, Features, propagate_all
from ptmq.reconstruction.losses import distance
from ptmq.reconstruction.settings import AdaptiveRoundingSettings, ReconstructionSettings


class Pass:
    """One pass over the units, with the hooks that the engine calls.

    widths: those whose features are streamed from unit to unit · power: p of the error |x - target|^p.
    """

    power: ClassVar[float] = 2.0
    settings: ReconstructionSettings

    def __init__(self, settings: Any, widths: Sequence[BitWidth]):
        self.settings, self.widths = settings, tuple(widths)

    def parts(self, unit: Unit) -> Sequence[Unit]:
        """What of a unit is learned at a time, in order: the whole of it, or `unit.by_layer()`.

        Layer by layer, the step size behind a residual sum is not learned: it belongs to no layer.
        """
        return [unit]

    def relax(self, layer: GridLayer) -> Relaxation | None:
        """The learnable rounding of a layer; None leaves its weights as they are."""
        return None

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """The widths at which this iteration runs the unit."""
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

        Not asked for stem and head, which always take `error`.
        """
        return self.error(target, outputs)

    def error(self, target: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The plain error with `power`, summed over the outputs, a scalar."""
        return reduce(torch.add, (distance(output, target, self.power) for output in outputs))

    def importance(self, unit: Unit, later: Sequence[Unit], features: Features) -> Tensor | None:
        """Weights of the squared error, of the target's shape, in place of `loss` and `power`; None to take those.

        For passes that learn whole units: `later` are the units after this one.
        """
        return None

    def regularizer(self, relaxations: Sequence[Relaxation], iteration: int) -> Tensor | float:
        """What is added to the loss at `iteration`, counted from 1."""
        return 0.0

    def begin(self, unit: Unit, features: Features) -> Sequence[dict[str, Any]]:
        """Before a unit is learned: what learns beside V and the step sizes, or of V's parameters at another rate.

        Groups of {"params": [...], "lr": ...}; the rates fall to 0 as a cosine. Relaxations are in their quantizers.
        """
        return []

    def hand_on(self, unit: Unit, quantized: MutableMapping[BitWidth, Feature], generator: torch.Generator) -> None:
        """Put what the next unit gets at every width in the place of what this one got; here each width its own."""
        propagate_all(unit, quantized)

    def end(self, unit: Unit, features: Features) -> None:
        """After a unit was learned, before its outputs are handed on."""


Passes = Sequence[Pass]  # in the order in which they go over the network


class AdaptiveRoundingPass(Pass):
    """Learns for every weight whether it is rounded down or up, beside the activation step sizes."""

    settings: AdaptiveRoundingSettings

    def relax(self, layer: GridLayer) -> Relaxation | None:
        """Adaptive rounding, started so that the soft weight is the FP weight."""
        quantizer = layer.quantizer
        return AdaptiveRounding(layer.weight, quantizer.step_sizes(), quantizer.zero_points(), self.settings.initial_v)

    def regularizer(self, relaxations: Sequence[Relaxation], iteration: int) -> Tensor | float:
        """λ_r times the pull of every V towards 0 or 1, after the warm-up."""
        beta = self.settings.beta_at(iteration)
        return 0.0 if beta is None else self.settings.regularizer * sum(r.regularizer(beta) for r in relaxations)


class StepSizePass(Pass):
    """BRECQ's second pass: activation step sizes alone, for weights that are quantized already, with p = 2.4."""

    power = 2.4

    def parts(self, unit: Unit) -> Sequence[Unit]:
        """The unit, where it has anything to learn."""
        return [unit] if unit.quantizers else []
