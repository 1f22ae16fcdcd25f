"""MultiQuant: train one network for all widths, which share weights and BatchNorm.

Paper: Xu, Feng, Zhang, Wang, IJCAI 2022, https://doi.org/10.24963/ijcai.2022/504. Every iteration trains the lowest,
the highest and a width drawn between them; step sizes are learned, one set a width (LSQ); labels adapt while the
network trains, so that low widths, which cannot fit one-hot labels, do not pull the shared weights away from the high
ones ("vicious competition"). BatchNorm is re-estimated at every switch (ptmq/training/adaptive_bn.py).

Neither the formula of its labels nor its schedule was found in what could be read of it. So the labels are ours: that
of a width is p · t + (1 - p) · y, with y the true label, t what the next higher width that was run gives for the image,
and p the probability in t of the true class. The highest width gets y. Where the higher width is right, the lower one
learns to follow it and not to outdo it; where it is wrong, the true label counts. The schedule `paper` is that of
Any-Precision's released code, which the same author's later work compares with.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import Task, register
from ptmq.methods.label_training import (
    SCHEDULES_FOR_ALL_WIDTHS,
    TrainedMethod,
    TrainedStepSizeSettings,
    soft_cross_entropy,
)
from ptmq.network.layers import Layer, QuantizedLayer
from ptmq.network.model import Switchable
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.training.adaptive_bn import AdaptiveBNModel

STEP_SIZE_RATE = 0.01  # factor on the learning rate


def adaptive_label(y: Tensor, higher: Tensor) -> Tensor:
    """The label of a width from the true classes (batch,) and a higher width's probabilities (batch, classes)."""
    trust = higher.gather(1, y[:, None])
    return trust * higher + (1 - trust) * F.one_hot(y, higher.shape[1])


@register
class MultiQuant(TrainedMethod):
    """Training of the lowest, the highest and a random width with adaptive soft labels; BatchNorm re-estimated."""

    name = "multiquant"
    style = ("MultiQuant", "#1B7837", "d", (0, (2, 1, 1, 1)))
    Settings = TrainedStepSizeSettings
    schedules = SCHEDULES_FOR_ALL_WIDTHS

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        super().__init__(settings, widths, groups)
        if len(self.widths) < 2:
            raise InputError(f"multiquant trains two widths or more. Got {self.widths[0]}.")

    def build(
        self, network: nn.Module, blocks: Sequence[str] | None, example: Tensor | None = None, **conversion: Any
    ) -> AdaptiveBNModel:
        """The network with a learned step size of every tensor for every width."""
        spec = self.spec(blocks, **conversion)

        def to_layer(layer: Layer, fixed: int | None) -> QuantizedLayer:
            return QuantizedLayer(layer, ActivationQuantizer(spec.weight_bits, fixed))  # per tensor, learned (LSQ)

        return AdaptiveBNModel(network, spec, to_layer, example)

    def fit(self, task: Task) -> tuple[Switchable, dict[str, Any]]:
        """Search step sizes, then train them and everything else."""
        model, _ = super().fit(task)
        details = self.train(model, task)
        assert isinstance(model, AdaptiveBNModel)  # from `build`
        self.keep_step_sizes_positive(model)
        return model, details

    def rates(self, model: Any) -> dict[nn.Parameter, float]:
        """Step sizes are far smaller than weights, and so is their learning rate."""
        return {step: STEP_SIZE_RATE for quantizer in model.learned_quantizers for step in quantizer.step.parameters()}

    def keep_step_sizes_positive(self, model: AdaptiveBNModel) -> None:
        """Undo an optimizer's move across zero."""
        for quantizer in model.learned_quantizers:
            quantizer.keep_step_sizes_positive()

    def drawn(self, generator: torch.Generator) -> list[BitWidth]:
        """The highest, one between (where there is one) and the lowest width, in this order."""
        lowest, *between, highest = sorted(self.widths)
        if between:
            between = [between[int(torch.randint(len(between), (), generator=generator))]]
        return [highest, *between, lowest]

    def losses(self, model: Any, x: Tensor, y: Tensor, generator: torch.Generator) -> Iterable[Tensor]:
        """Cross-entropy at each of them, against its adaptive label."""
        self.keep_step_sizes_positive(model)
        higher = None
        for width in self.drawn(generator):
            model.set_bits(width.weight, width.activation)
            logits = model(x)
            yield (
                F.cross_entropy(logits, y) if higher is None else soft_cross_entropy(logits, adaptive_label(y, higher))
            )
            higher = logits.detach().softmax(1)
