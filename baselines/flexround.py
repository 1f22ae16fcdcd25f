"""FlexRound: round after an element-wise division that is learned.

Paper: https://arxiv.org/abs/2306.00317. The weight is  s1 * clip(round(w / (s1 * S2 * s3 * s4)))  with the step size
s1, S2 of the weight's shape, s3 per output channel and, for convolutions, s4 per input channel; all are learned,
straight through the rounding, without a regularizer. A weight may move further than to its neighbours on the grid.
`setting: qdrop` learns it together with the activation step sizes under dropping, `setting: brecq` in BRECQ's two
passes.
Departures: the factors are learned as logarithms, as in the released code; s1 starts from the suite's step-size
search; learning rates and iterations are those of docs/defaults.md.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ptmq.common.errors import one_of, require
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.layers import GridLayer
from ptmq.quantization.fake_quantization import largest_code
from ptmq.quantization.rounding import Relaxation
from ptmq.reconstruction.passes import Pass, Passes
from ptmq.reconstruction.settings import ReconstructionSettings


@dataclass(frozen=True)
class FlexRoundSettings(ReconstructionSettings):
    """Whose way of reconstruction it is used in."""

    lr_rounding: float = 3e-3
    lr_rounding_schedule: str = "cosine"
    setting: str = "qdrop"  # or brecq, which drops nothing
    activation_iterations: int = 0  # a unit in the second pass of setting brecq; 0: a quarter of `iterations`

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("setting", self.setting, ("brecq", "qdrop"))
        require(self.setting == "qdrop" or self.keep == 1, "keep", "1 in setting brecq (set keep: 1)", self.keep)
        require(self.activation_iterations >= 0, "activation_iterations", "0 or more", self.activation_iterations)


class ElementwiseDivision(Relaxation):
    """The learned divisors of one layer's weight, (out, in, ...); step_sizes, zero_points: (out, 1, ...) a width."""

    def __init__(self, weight: Tensor, step_sizes: dict[int, Tensor], zero_points: dict[int, Tensor]):
        super().__init__(step_sizes)
        self.weight, self.zero_points = weight, zero_points
        self.log_s1 = nn.ParameterDict({str(bits): nn.Parameter(step.log()) for bits, step in step_sizes.items()})
        self.log_s2 = nn.Parameter(torch.zeros_like(weight))
        self.log_s3 = nn.Parameter(weight.new_zeros(len(weight), *[1] * (weight.dim() - 1)))
        self.log_s4 = nn.Parameter(weight.new_zeros(1, weight.shape[1], 1, 1)) if weight.dim() == 4 else 0.0

    def soft(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """s1 * (codes - zero point): the forward value is on the grid, the gradient passes the rounding."""
        return {bits: (self._codes(bits) - self.zero_points[bits]) * self.log_s1[str(bits)].exp() for bits in widths}

    @property
    def step_sizes(self) -> dict[int, Tensor]:
        """The learned step sizes."""
        return {int(bits): log_s1.detach().exp() for bits, log_s1 in self.log_s1.items()}

    @torch.no_grad()
    def hard(self) -> Tensor:
        """How far every code is from floor(w / s1) + zero point: int16, (widths, *weight.shape)."""
        offsets = [
            self._codes(bits) - torch.floor(self.weight / step) - self.zero_points[bits]
            for bits, step in self.step_sizes.items()
        ]
        return torch.stack(offsets).round().to(torch.int16)

    def _codes(self, bits: int) -> Tensor:
        """Codes 0 .. 2^bits - 1, a float tensor with the gradient of the unrounded quotient."""
        divisor = (self.log_s1[str(bits)] + self.log_s2 + self.log_s3 + self.log_s4).exp()
        quotient = self.weight / divisor
        rounded = quotient + (quotient.round() - quotient).detach()
        return torch.clamp(rounded + self.zero_points[bits], 0, largest_code(bits))


class FlexRoundPass(Pass):
    """Learns divisors of the weights beside the activation step sizes."""

    def relax(self, layer: GridLayer) -> Relaxation:
        """Every divisor starts from 1, the step size from the search: rounding to nearest."""
        return ElementwiseDivision(layer.weight, layer.quantizer.step_sizes(), layer.quantizer.zero_points())


@register
class FlexRound(Reconstruction):
    """Learned element-wise division of the weights before rounding to nearest."""

    name = "flexround"
    style = ("FlexRound", "#E69F00", "X", (0, (5, 1, 1, 1, 1, 1)))
    Settings = FlexRoundSettings
    Pass = FlexRoundPass
    per_width = True

    def passes(self) -> Passes:
        """One pass as QDrop, or two as BRECQ."""
        if self.settings.setting == "brecq":
            return self.weights_then_step_sizes(self.settings.activation_iterations)
        return super().passes()
