"""Nested: one 8-bit code for all bit-widths, a correction for each of them, and learned rounding where it pays.

A weight is one byte. Step sizes are a power of two apart, so every width is a shift of that byte
(`NestedWeightQuantizer`). Widths of few bits add one learned bit a weight to the byte rounded down. At one more width
the rounding is learned, too, and the byte moves to where it rounds as learned; from there on it is rounded to nearest.
Every layer's output is corrected at every width by a gain and a shift of each output channel
(`ptmq.quantization.quantizer`), which are learned beside the rounding or matched to the moments of the FP network.
Every width learns on its own features, towards the FP output, under QDrop's dropping. Ours; nothing published for
post-training quantization of vision networks that we found has this combination. Nested codes: MatQuant and Double
Rounding (https://arxiv.org/abs/2502.01199), trained with labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError, one_of, require
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.layers import GridLayer
from ptmq.network.model import MultiBitModel, Unit
from ptmq.network.place import QuantizationSpec
from ptmq.quantization.rounding import Relaxation, RoundingPerWidth
from ptmq.quantization.weight_quantizer import TIES, NestedWeightQuantizer
from ptmq.reconstruction.engine import Progress, ResumeFile, reconstruct, silent
from ptmq.reconstruction.features import Features
from ptmq.reconstruction.matching import fp_moments, match
from ptmq.reconstruction.passes import AdaptiveRoundingPass
from ptmq.reconstruction.settings import AdaptiveRoundingSettings, Execution

ORDERS = ("matched", "learned", "first", "after")
DRAWS = ("low", "groups")
MOMENT_IMAGES = 128  # on which the deviation of a layer's output is measured


@dataclass(frozen=True)
class NestedSettings(AdaptiveRoundingSettings):
    """The grid, which widths learn their rounding, how widths are drawn, and where corrections come from."""

    iterations: int = 500  # a unit; 0: nothing is learned, corrections are matched
    anchor: int = 4  # the width at which the grid's error is measured; 0: every width has a grid of its own
    ties: str = "even"  # where a byte in the middle between two codes of a width goes, unless a bit is stored for it
    learned_up_to: int = 5  # weight bits up to which a width's rounding is learned
    stored_up_to: int = 4  # weight bits up to which that is stored, a bit a weight; one width above, the byte moves
    draw: str = "low"  # low: some of the learned widths, at times one of the others; groups: one of each group
    draw_low: int = 2  # draw low: how many of the widths whose rounding is learned an iteration takes
    draw_others: float = 0.25  # draw low: the probability that it takes one of the others, too
    correction: str = "gain"
    correction_order: str = "first"
    lr_correction: float = 1e-3

    fewest_iterations: ClassVar[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("ties", self.ties, TIES)
        require(0 <= self.stored_up_to <= 8, "stored_up_to", "0..8", self.stored_up_to)
        most = max(self.stored_up_to, min(self.stored_up_to + 1, 6))
        require(
            self.learned_up_to <= most or self.anchor == 0,
            "learned_up_to",
            f"at most {most} while stored_up_to is {self.stored_up_to}, as the byte moves for one width of at most 6 "
            "bits (lower it, or raise stored_up_to)",
            self.learned_up_to,
        )
        one_of("draw", self.draw, DRAWS)
        require(self.draw_low >= 1, "draw_low", "at least 1", self.draw_low)
        require(0 <= self.draw_others <= 1, "draw_others", "a probability in [0, 1]", self.draw_others)
        one_of("correction_order", self.correction_order, ORDERS)


class NestedPass(AdaptiveRoundingPass):
    """One pass for all widths: rounding of its own for every low width, corrections for all."""

    settings: NestedSettings

    def __init__(self, settings: NestedSettings, widths: Sequence[BitWidth], groups: BitGroups | None):
        super().__init__(settings, widths)
        self.groups = groups if settings.draw == "groups" else None
        self.low = [width for width in self.widths if width.weight <= settings.learned_up_to]
        self.high = [width for width in self.widths if width not in self.low]

    def relax(self, layer: GridLayer) -> Relaxation | None:
        """One V for each low width, over the code rounded down; the edges keep theirs."""
        quantizer = layer.quantizer
        low = [bits for bits in quantizer.widths if bits <= self.settings.learned_up_to]
        if not low or quantizer.fixed:
            return None
        steps, zeros = quantizer.step_sizes(), quantizer.zero_points()
        grids = {bits: steps[bits] for bits in low}, {bits: zeros[bits] for bits in low}
        floors = {b: quantizer.floors(b) for b in low} if isinstance(quantizer, NestedWeightQuantizer) else None
        return RoundingPerWidth(layer.weight, *grids, self.settings.initial_v, floors)

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """Some of the low widths and at times one of the others, or one of each group."""
        if self.groups is not None:
            return self.groups.draw(generator)
        order = torch.randperm(len(self.low), generator=generator).tolist()
        low = [self.low[position] for position in sorted(order[: self.settings.draw_low])]
        if not self.high or (low and float(torch.rand((), generator=generator)) >= self.settings.draw_others):
            return low
        return [*low, self.high[int(torch.randint(len(self.high), (), generator=generator))]]

    def begin(self, unit: Unit, features: Features) -> Sequence[dict[str, Any]]:
        """The corrections learn, shifts at a rate relative to the deviation of the layer's output."""
        if not unit.corrections or self.settings.correction_order == "matched":
            return []
        if self.settings.correction_order == "first":
            match(unit, features.fp, features.quantized, self.settings)
        groups: list[dict[str, Any]] = []
        rate = self.settings.lr_correction
        moments, _ = fp_moments(unit, [features.fp[:MOMENT_IMAGES]])
        for layer, correction in unit.corrections.items():
            correction.learn(True)
            groups.append(
                {"params": list(correction.shift.values()), "lr": rate * float(moments[layer].deviation.mean())}
            )
            if self.settings.correction == "gain":
                groups.append({"params": list(correction.gain.values()), "lr": rate})
        return groups

    def end(self, unit: Unit, features: Features) -> None:
        """Move the bytes, keep what corrections learned, and match those that `correction_order` says.

        In orders first and learned, the widths above the one that moves the byte have learned on the byte before.
        """
        for quantizer in (layer.quantizer for layer in unit.layers):
            if isinstance(quantizer, NestedWeightQuantizer) and self.settings.stored_up_to + 1 in quantizer.learned:
                quantizer.absorb()
        for correction in unit.corrections.values():
            correction.learn(False)
            correction.keep_bounded()
        rest = {"matched": self.widths, "after": self.high}.get(self.settings.correction_order, ())
        if unit.corrections and rest:
            match(unit, features.fp, {width: features.quantized[width] for width in rest}, self.settings)


@register
class Nested(Reconstruction):
    """One 8-bit code for all widths, corrected per width and channel; rounding learned at low widths."""

    name = "nested"
    style = ("nested codes", "#4B0082", "D", "-")
    target = "onnx"  # the byte is stored to be taken away
    Settings = NestedSettings

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        super().__init__(settings, widths, groups)
        if self.settings.draw == "groups" and (groups is None or set(groups.widths) != set(self.widths)):
            raise InputError(
                "nested: draw: groups takes one width of each bit group, and needs groups of just the widths that are "
                "calibrated. Give groups, or take draw: low."
            )

    def spec(self, blocks: Sequence[str] | None, **conversion: Any) -> QuantizationSpec:
        """With one grid for all widths."""
        return super().spec(blocks, **{"anchor": self.settings.anchor, "ties": self.settings.ties, **conversion})

    def passes(self) -> Sequence[NestedPass]:
        """One pass for all widths."""
        return [NestedPass(self.settings, self.widths, self.groups)]

    def calibrate(
        self,
        model: MultiBitModel,
        images: Tensor,
        seed: int,
        execution: Execution = Execution(),  # noqa: B008 (frozen)
        resume: ResumeFile | None = None,
        progress: Progress = silent,
    ) -> list[dict[str, Any]]:
        """Search the grids, then learn and correct unit by unit, or correct alone where nothing is learned."""
        self.search_step_sizes(model, images)
        if self.settings.iterations:
            return reconstruct(model, images, self.passes(), seed, execution, resume, progress)
        self.correct(model, images)
        return []
