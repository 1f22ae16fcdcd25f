"""BRECQ: reconstruct block by block, weights first and activation step sizes after.

Paper: https://arxiv.org/abs/2102.05426. The rounding of all blocks is learned under FP activations, each block on what
the quantized blocks before it give; then the activation step sizes of all blocks, with |error|^2.4.
`fisher: true` weighs the first error by (|g| + 1)^2, g the gradient of KL(FP network || quantized so far) averaged over
a batch: the form of the released code, in which g is so small that it changes little.
Departures: the Fisher weights, the paper's loss, are off, as in the released code; learning rates and steps are those
of docs/defaults.md, not 1e-3, 4e-4, 20,000 and 5,000; the first and the last layer's weights and the last layer's
input have 8 bits, as for every method of this suite.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.errors import require
from ptmq.common.settings import AdaptiveRoundingSettings
from ptmq.methods.interface import AdaptiveReconstruction, register
from ptmq.reconstruction.features import joined, propagate, take


@dataclass(frozen=True)
class BRECQSettings(AdaptiveRoundingSettings):
    """Two passes, nothing is dropped."""

    lr_step_size: float = 1e-4
    keep: float = 1.0
    activation_steps: int = 0  # a unit in the second pass; 0: a quarter of `steps`, as published
    fisher: bool = False

    def __post_init__(self):
        super().__post_init__()
        require(self.keep == 1, "keep", "1 (BRECQ drops nothing)", self.keep)
        require(self.activation_steps >= 0, "activation_steps", "0 or more", self.activation_steps)


@register
class BRECQ(AdaptiveReconstruction):
    """Rounding of one block after the other under FP activations, then activation step sizes."""

    name = "brecq"
    Settings = BRECQSettings
    per_width = True

    def phases(self):
        """Weights, then step sizes."""
        return self.weights_then_step_sizes(self.settings.activation_steps)

    def importance(self, unit, later, features):
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
        return joined(gradients).abs().add(1).square()


def _log_probabilities(x, later):
    """The network's, from what enters the units `later`, (images, classes)."""
    for unit in later:
        x = unit(x)
    return x.log_softmax(-1)
