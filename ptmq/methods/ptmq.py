"""PTMQ: post-training multi-bit quantization, one calibration for all bit-widths.

Paper: Xu, Li, Wang, Zhang, AAAI 2024, https://doi.org/10.1609/aaai.v38i14.29553. Weights and rounding values
are shared by all widths; step sizes are one set a width. Every step draws one width from each bit group,
mixes the groups' features into the block's input (ptmq/methods/mixer.py) and sums the groups' errors with the
Group-wise Distillation Loss (ptmq/reconstruction/losses.py). The optimisation loop is ptmq/reconstruction/engine.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError, one_of, require
from ptmq.common.settings import AdaptiveRoundingSettings
from ptmq.methods import mixer
from ptmq.methods.interface import AdaptiveReconstruction, register
from ptmq.network.layers import QuantizedLayer
from ptmq.quantization.fake_quantization import keep_mask
from ptmq.quantization.rounding import Relaxation, RoundingPerWidth
from ptmq.reconstruction import losses

CASES = ("1", "2", "3", "none")
GD_LOSSES = ("figure1", "later", "none")


@dataclass(frozen=True)
class PTMQSettings(AdaptiveRoundingSettings):
    """PTMQ's own choices, beside those of every reconstruction."""

    mfm: str = "3"  # case of the feature mixer; none: every width sees its own feature, mixed with FP
    lambdas: tuple = mixer.LAMBDAS  # weights of the groups in a mix, lowest first
    gd: str = "later"  # figure1, later or none
    gammas: tuple = (1.0, 1.0, 1.0)  # weights of the terms of figure 1: the mix, then the groups below the highest
    gd_detach: bool = True  # stop the gradient at the high group, the teacher
    shared_rounding: bool = True  # one R for all widths, as in the paper; else one a width

    def __post_init__(self):
        super().__post_init__()
        one_of("mfm", self.mfm, CASES)
        one_of("gd", self.gd, GD_LOSSES)
        for name in ("lambdas", "gammas"):
            values = getattr(self, name)
            require(min(values, default=-1) >= 0, name, "numbers of 0 or more", values)
        require(abs(sum(self.lambdas) - 1) < 1e-6, "lambdas", "numbers that sum to 1", self.lambdas)


@register
class PTMQ(AdaptiveReconstruction):
    """Shared rounding values, mixed multi-bit features, group-wise distillation."""

    name = "ptmq"
    Settings = PTMQSettings

    def __init__(self, settings, widths, groups=None):
        super().__init__(settings, widths, groups)
        if groups is None:
            raise InputError("ptmq needs bit groups. Give groups: {low: [...], medium: [...], high: [...]}.")
        if set(self.widths) != set(groups.widths):
            raise InputError(
                f"ptmq calibrates the widths of its groups, {', '.join(map(str, groups.widths))}. "
                f"Got {', '.join(map(str, self.widths))}. Change the groups, or leave out widths and per_width."
            )

        for name in ("lambdas", "gammas"):
            values = getattr(self.settings, name)
            require(len(values) == len(groups), f"ptmq: {name}", f"{len(groups)} numbers, as many as groups", values)

    def relax(self, layer: QuantizedLayer) -> Relaxation:
        """One V for all widths, or one V a width."""
        if self.settings.shared_rounding:
            return super().relax(layer)
        return RoundingPerWidth(layer.weight, layer.steps(), layer.zero_points(), self.settings.initial_v)

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """One width from each group."""
        return self.groups.draw(generator)

    def mix(self, fp: Tensor, quantized: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
        """The block's input: one mixed feature for all groups, or each group's own without MFM."""
        case = self.settings.mfm
        if case == "none":
            return super().mix(fp, quantized, generator)
        first = keep_mask(fp, mixer.PROBABILITY, generator)
        if case == "1":
            group = int(torch.randint(len(quantized), (), generator=generator, device=generator.device))
            mixed = mixer.case1(first, fp, quantized[group])
        elif case == "2":
            mixed = mixer.case2(first, quantized)
        else:
            mixed = mixer.case3(first, fp, quantized, self.settings.lambdas)
        return [mixed] * len(quantized)

    def loss(self, target: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The GD-Loss of the configured form."""
        if self.settings.gd == "figure1":
            return losses.gd_figure1(
                target, outputs, self.settings.lambdas, self.settings.gammas, self.settings.gd_detach
            )
        return (losses.gd_later if self.settings.gd == "later" else losses.gd_none)(target, outputs)
