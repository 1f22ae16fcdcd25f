"""PTMQ: post-training multi-bit quantization, one calibration for all bit-widths.

Paper: Xu, Li, Wang, Zhang, AAAI 2024, https://doi.org/10.1609/aaai.v38i14.29553. Weights and rounding values
are shared by all widths; step sizes are one set a width. Every iteration draws one width from each bit group,
mixes the groups' features into the block's input (ptmq/methods/mixer.py) and sums the groups' errors with the
Group-wise Distillation Loss (ptmq/methods/gd_loss.py). The loop is ptmq/reconstruction/engine.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError, one_of, require
from ptmq.methods import gd_loss, mixer
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.layers import GridLayer
from ptmq.quantization.fake_quantization import keep_mask
from ptmq.quantization.rounding import Relaxation, RoundingPerWidth
from ptmq.reconstruction.passes import AdaptiveRoundingPass
from ptmq.reconstruction.settings import AdaptiveRoundingSettings

CASES = ("1", "2", "3", "none")
GD_LOSSES = ("figure1", "later", "none")


@dataclass(frozen=True)
class PTMQSettings(AdaptiveRoundingSettings):
    """PTMQ's own choices, beside those of every reconstruction."""

    mfm: str = "3"  # case of the feature mixer; none: every width sees its own feature, mixed with FP
    lambdas: tuple[float, ...] = mixer.LAMBDAS  # weights of the groups in a mix, lowest first
    gd: str = "later"  # figure1, later or none
    gammas: tuple[float, ...] = (
        1.0,
        1.0,
        1.0,
    )  # of the terms of figure 1: the mix, then the groups below the highest
    gd_detach: bool = True  # stop the gradient at the high group, the teacher
    shared_rounding: bool = True  # one R for all widths, as in the paper; else one a width

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mfm", self.mfm, CASES)
        one_of("gd", self.gd, GD_LOSSES)
        for name in ("lambdas", "gammas"):
            values = getattr(self, name)
            require(min(values, default=-1) >= 0, name, "numbers of 0 or more", values)
        require(abs(sum(self.lambdas) - 1) < 1e-6, "lambdas", "numbers that sum to 1", self.lambdas)


class PTMQPass(AdaptiveRoundingPass):
    """One pass for all widths: shared rounding values, mixed features, group-wise distillation."""

    settings: PTMQSettings

    def __init__(self, settings: PTMQSettings, widths: Sequence[BitWidth], groups: BitGroups):
        super().__init__(settings, widths)
        self.groups = groups

    def relax(self, layer: GridLayer) -> Relaxation | None:
        """One V for all widths, or one V a width."""
        if self.settings.shared_rounding:
            return super().relax(layer)
        quantizer = layer.quantizer
        return RoundingPerWidth(layer.weight, quantizer.step_sizes(), quantizer.zero_points(), self.settings.initial_v)

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
            return gd_loss.gd_figure1(
                target, outputs, self.settings.lambdas, self.settings.gammas, self.settings.gd_detach
            )
        return (gd_loss.gd_later if self.settings.gd == "later" else gd_loss.gd_none)(target, outputs)


@register
class PTMQ(Reconstruction):
    """Shared rounding values, mixed multi-bit features, group-wise distillation."""

    name = "ptmq"
    style = ("PTMQ", "#D55E00", "o", "-")
    Settings = PTMQSettings
    groups: BitGroups

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        super().__init__(settings, widths, groups)
        if groups is None:
            raise InputError("ptmq needs bit groups. Give groups: {low: [...], medium: [...], high: [...]}.")
        if set(self.widths) != set(groups.widths):
            raise InputError(
                f"ptmq calibrates the widths of its groups, {', '.join(map(str, groups.widths))}. "
                f"Got {', '.join(map(str, self.widths))}. Change the groups, or leave out widths and per_width."
            )
        count = len(groups)
        if count != len(mixer.LAMBDAS):  # the defaults are of three groups: of others, all alike
            alike = {"lambdas": (1 / count,) * count, "gammas": (1.0,) * count}
            self.settings = replace(self.settings, **{k: alike[k] for k in alike if k not in settings})
        for name in ("lambdas", "gammas"):
            values = getattr(self.settings, name)
            require(len(values) == len(groups), f"ptmq: {name}", f"{len(groups)} numbers, as many as groups", values)

    def passes(self) -> Sequence[PTMQPass]:
        """One pass for all widths."""
        return [PTMQPass(self.settings, self.widths, self.groups)]
