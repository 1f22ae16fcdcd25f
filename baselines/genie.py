"""Genie-M: learn rounding and the weights' step sizes together.

Paper: https://arxiv.org/abs/2212.04780 (CVPR 2023), the quantization part; images are real here, not generated. The
weight is  s * (clip(B + h(V) + z, 0, 2^b - 1) - z)  with B = floor(w / s0) fixed at the step size s0 of the search:
with B tied to s a moved step would change the problem that V solves, freed they are learned jointly. Dropping, target
and regularizer are QDrop's.
Departures: the regularizer's weight is the suite's 0.01, not 1, and learning rates and iterations are those of
docs/defaults.md, not 1e-3 for V, 1e-4 for s and 20,000; s is learned as a logarithm, so that its rate does not depend
on the weights' scale; step sizes start from 80 shrinks and not from 100; activations are quantized asymmetrically
where they are computed, with the LSQ gradient's factor, as for every method of this suite.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.errors import require
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.layers import GridLayer
from ptmq.network.model import Unit
from ptmq.quantization.fake_quantization import dequantize, largest_code
from ptmq.quantization.rounding import AdaptiveRounding, Relaxation, rectified_sigmoid
from ptmq.reconstruction.features import Features
from ptmq.reconstruction.passes import AdaptiveRoundingPass
from ptmq.reconstruction.settings import AdaptiveRoundingSettings


@dataclass(frozen=True)
class GenieSettings(AdaptiveRoundingSettings):
    """How fast the weights' step sizes learn."""

    lr_weight_step: float = 1e-3  # Adam, cosine to 0, of the logarithm

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.lr_weight_step >= 0, "lr_weight_step", "0 or more", self.lr_weight_step)


class JointRounding(AdaptiveRounding):
    """V and the logarithm of each step size, learned beside fixed floors. Arguments as for `AdaptiveRounding`."""

    def __init__(self, weight: Tensor, step_sizes: dict[int, Tensor], zero_points: dict[int, Tensor], initial: str):
        super().__init__(weight, step_sizes, zero_points, initial)
        self.weight = weight
        self.log_step = nn.ParameterDict({str(bits): nn.Parameter(step.log()) for bits, step in step_sizes.items()})

    def soft(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """The differentiable weights at `widths`, each with its learned step size."""
        h = rectified_sigmoid(self.v)
        return {
            bits: dequantize(
                torch.clamp(self.floors[bits] + h, 0, largest_code(bits)), self.log_step[str(bits)].exp(),
                self.zero_points[bits],
            )
            for bits in widths
        }  # fmt: skip

    @property
    def step_sizes(self) -> dict[int, Tensor]:
        """The learned step sizes."""
        return {int(bits): log_step.detach().exp() for bits, log_step in self.log_step.items()}

    def hard(self) -> Tensor:
        """How far every code is from floor(w / s) + z with the learned s: int16, (widths, *weight.shape)."""
        up = (self.v.detach() >= 0).to(self.weight.dtype)
        offsets = [
            self.floors[bits] + up - torch.floor(self.weight / step) - self.zero_points[bits]
            for bits, step in self.step_sizes.items()
        ]
        return torch.stack(offsets).round().to(torch.int16)


class GeniePass(AdaptiveRoundingPass):
    """QDrop's pass, whose weights' step sizes learn, too."""

    settings: GenieSettings

    def relax(self, layer: GridLayer) -> Relaxation:
        """V and step sizes, started from the search."""
        quantizer = layer.quantizer
        return JointRounding(layer.weight, quantizer.step_sizes(), quantizer.zero_points(), self.settings.initial_v)

    def begin(self, unit: Unit, features: Features) -> Sequence[dict[str, Any]]:
        """The logarithms of the weights' step sizes."""
        relaxations = (layer.quantizer.relaxation for layer in unit.layers)
        steps = [step for r in relaxations if isinstance(r, JointRounding) for step in r.log_step.values()]
        return [{"params": steps, "lr": self.settings.lr_weight_step}]


@register
class Genie(Reconstruction):
    """Rounding, weight and activation step sizes of one width, learned jointly under random dropping (Genie-M)."""

    name = "genie"
    style = ("Genie-M", "#661100", "8", (0, (5, 2)))
    Settings = GenieSettings
    Pass = GeniePass
    per_width = True
