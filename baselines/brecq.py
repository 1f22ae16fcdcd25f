"""BRECQ: reconstruct block by block, weights first and activation step sizes after.

Paper: https://arxiv.org/abs/2102.05426. The rounding of all blocks is learned under FP activations, each block on what
the quantized blocks before it give; then the activation step sizes of all blocks, with |error|^2.4.
`fisher: true` weighs the first error by (|g| + 1)^2, g the gradient of KL(FP network || quantized so far) averaged over
a batch: the form of the released code, in which g is so small that it changes little.
Departures: the Fisher weights, the paper's loss, are off, as in the released code; learning rates and iterations are
those of docs/defaults.md, not 1e-3, 4e-4, 20,000 and 5,000; the first and the last layer's weights and the last layer's
input have 8 bits, as for every method of this suite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.device import joined
from ptmq.common.errors import require
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.model import Unit
from ptmq.reconstruction.features import Features, propagate, take
from ptmq.reconstruction.passes import AdaptiveRoundingPass, Passes
from ptmq.reconstruction.settings import AdaptiveRoundingSettings


@dataclass(frozen=True)
class BRECQSettings(AdaptiveRoundingSettings):
    """Two passes, nothing is dropped."""

    lr_step_size: float = 1e-3
    keep: float = 1.0
    activation_iterations: int = 0  # a unit in the second pass; 0: a quarter of `iterations`, as published
    fisher: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.keep == 1, "keep", "1 (BRECQ drops nothing)", self.keep)
        require(self.activation_iterations >= 0, "activation_iterations", "0 or more", self.activation_iterations)


class BRECQPass(AdaptiveRoundingPass):
    """Adaptive rounding, where it is asked for with the Fisher weights of the error."""

    settings: BRECQSettings

    def importance(self, unit: Unit, later: Sequence[Unit], features: Features) -> Tensor | None:
        """(|g| + 1)^2, g the gradient of KL(FP network || blocks so far quantized) by the unit's output."""
        if not self.settings.fisher:
            return None
        (width,) = self.widths
        outputs = propagate(unit, features.quantized[width], width)
        for following in later:
            following.set_bits(FULL_PRECISION)
        gradients = []
        for index in torch.arange(len(outputs), device=outputs.device).split(self.settings.batch_size):
            output, target = (take(x, index).to(unit.device) for x in (outputs, features.target))
            output.requires_grad_()
            logits, fp = _log_probabilities(output, later), _log_probabilities(target, later)
            divergence = F.kl_div(logits, fp, reduction="batchmean", log_target=True)
            gradients.append(torch.autograd.grad(divergence, output)[0].to(outputs.device))
        return joined(gradients, len(outputs)).abs().add(1).square()


def _log_probabilities(x: Tensor, later: Sequence[Unit]) -> Tensor:
    """The network's, from what enters the units `later`, (images, classes)."""
    for unit in later:
        x = unit(x)
    return x.log_softmax(-1)


@register
class BRECQ(Reconstruction):
    """Rounding of one block after the other under FP activations, then activation step sizes."""

    name = "brecq"
    style = ("BRECQ", "#CC79A7", "D", (0, (3, 1, 1, 1)))
    Settings = BRECQSettings
    Pass = BRECQPass
    per_width = True

    def passes(self) -> Passes:
        """Weights, then step sizes."""
        return self.weights_then_step_sizes(self.settings.activation_iterations)
