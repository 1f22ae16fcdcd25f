"""QuEPT: low-rank terms of growing rank and learned clipping for every group of widths, on one mixed feature.

Paper: https://arxiv.org/abs/2602.12609 (AAAI 2026), by PTMQ's authors, for transformers. A weight at b bits is
W + B[:, :r] · A[:r] with a rank r that grows from the highest group of widths to the lowest, on a grid per output
channel whose range, a learned share of the largest and the smallest value, moves with it. Every iteration draws one
width from each group and sums their errors |x - target|. What the next block gets is mixed once a block and for all
widths (multi-bit token merging): the half of the tokens on which the highest and the lowest group agree best comes from
the highest, the others from all three.
Departures: a layer's rank is 16 for each group from the highest down to its own, which with three groups is the
publication's 16, 32 and 48. Activation step sizes start from the suite's search and not from quantiles, and have LSQ's
factor on their gradient. LayerNorm is folded as for every method; its affine part is not changed before (RepQ-ViT).
The edges have 8-bit weights, rounded to nearest. Learning rates are those of the released script, iterations those of
docs/defaults.md and not 640. A convolution's weight is taken as rows, and positions as tokens: ours.
"""

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError, require
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.layers import GridLayer
from ptmq.network.model import Unit
from ptmq.quantization.fake_quantization import dequantize, largest_code
from ptmq.quantization.rounding import Relaxation
from ptmq.reconstruction.features import Feature, Features, propagate, take, values
from ptmq.reconstruction.losses import channel_axis
from ptmq.reconstruction.passes import Pass, Passes
from ptmq.reconstruction.settings import ReconstructionSettings

RANK = 16  # that each group adds
CLIPPING = 4.0  # sigmoid(4) = 0.982 of the range is kept at first
SMALLEST, LARGEST = 1e-5, 1e4  # of a step size
AGREEING = 0.5  # share of the tokens that come from the highest group


def rounded(x: Tensor) -> Tensor:
    """x rounded, with the gradient of x."""
    return x + (x.round() - x).detach()


class LowRankTerm(Relaxation):
    """A layer's adapters, shared by its widths, and two clipping factors of each row and width.

    weight: (out, ...) · ranks: of each width, keyed by bits.
    """

    def __init__(
        self, weight: Tensor, step_sizes: dict[int, Tensor], ranks: Mapping[int, int], generator: torch.Generator
    ):
        super().__init__(step_sizes)
        rows = weight.flatten(1)
        self.weight, self.ranks = weight, {bits: ranks[bits] for bits in step_sizes}
        rank, bound = max(self.ranks.values()), rows.shape[1] ** -0.5
        start = torch.rand(rank, rows.shape[1], generator=generator) * 2 - 1
        self.a = nn.Parameter(start.to(weight) * bound)  # (rank, in * kh * kw)
        self.b = nn.Parameter(weight.new_zeros(len(rows), rank))
        self.upper = nn.ParameterDict({str(b): nn.Parameter(weight.new_full((len(rows), 1), CLIPPING)) for b in ranks})
        self.lower = nn.ParameterDict({str(b): nn.Parameter(weight.new_full((len(rows), 1), CLIPPING)) for b in ranks})

    def grid(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """The adapted weight as rows, step size and zero point, (out, 1) each, at a width."""
        rows = self.weight.flatten(1) + self.b[:, : self.ranks[bits]] @ self.a[: self.ranks[bits]]
        high = torch.sigmoid(self.upper[str(bits)]) * rows.amax(1, keepdim=True)
        low = torch.sigmoid(self.lower[str(bits)]) * rows.amin(1, keepdim=True)
        step = ((high - low) / largest_code(bits)).clamp(SMALLEST, LARGEST)
        return rows, step, (-low / step).detach().round()

    def codes(self, bits: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of the adapted weight as rows, with the gradient of the unrounded quotient; step size; zero point."""
        rows, step, zero = self.grid(bits)
        return torch.clamp(rounded(rows / step) + zero, 0, largest_code(bits)), step, zero

    def soft(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """The adapted weights on their grids; the gradient passes the rounding."""
        return {bits: dequantize(*self.codes(bits)).view_as(self.weight) for bits in widths}

    @property
    def step_sizes(self) -> dict[int, Tensor]:
        """The learned step sizes."""
        return {bits: self._column(self.grid(bits)[1].detach()) for bits in self.ranks}

    @property
    def learned_zero_points(self) -> dict[int, Tensor]:
        """The learned zero points."""
        return {bits: self._column(self.grid(bits)[2]) for bits in self.ranks}

    @torch.no_grad()
    def hard(self) -> Tensor:
        """How far every code is from floor(w / s) + z, w without adapters: int16, (widths, *weight.shape)."""
        offsets = []
        for bits in sorted(self.ranks):
            codes, step, zero = self.codes(bits)
            offsets.append((codes - torch.floor(self.weight.flatten(1) / step) - zero).view_as(self.weight))
        return torch.stack(offsets).round().to(torch.int16)

    def _column(self, values: Tensor) -> Tensor:
        """(out, 1) -> (out, 1, ...), to broadcast against the weight."""
        return values.view(-1, *[1] * (self.weight.dim() - 1))


def merge_tokens(high: Tensor, medium: Tensor, low: Tensor, lambdas: Sequence[float]) -> Tensor:
    """One feature from those of three groups, (images, tokens, channels) each.

    lambdas: weights of low, medium and high where high and low do not agree.
    """
    weights = zip((low, medium, high), lambdas, strict=True)
    mixed = torch.stack([weight * feature for feature, weight in weights]).sum(0)
    agreeing = F.cosine_similarity(high, low, dim=-1).topk(int(AGREEING * high.shape[1]), dim=1).indices
    index = agreeing[..., None].expand(-1, -1, high.shape[2])
    return mixed.scatter(1, index, high.gather(1, index))


@dataclass(frozen=True)
class QuEPTSettings(ReconstructionSettings):
    """Learning rates of the released script; nothing is dropped."""

    lr_rounding: float = 1e-3  # of the adapters
    lr_rounding_schedule: str = "cosine"
    lr_clipping: float = 1e-2
    lr_step_size: float = 1e-4
    lr_step_size_relative: bool = False
    keep: float = 1.0
    lambdas: tuple = (0.4, 0.3, 0.3)  # weights of the groups where tokens are mixed, lowest first

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.keep == 1, "keep", "1 (QuEPT drops nothing)", self.keep)
        require(self.lr_clipping >= 0, "lr_clipping", "0 or more", self.lr_clipping)
        ok = len(self.lambdas) == 3 and min(self.lambdas) >= 0 and abs(sum(self.lambdas) - 1) < 1e-6
        require(ok, "lambdas", "three numbers of 0 or more that sum to 1", self.lambdas)


class QuEPTPass(Pass):
    """Adapters and clipping of all widths, on one mixed stream."""

    power: ClassVar[float] = 1.0
    settings: QuEPTSettings

    def __init__(self, settings: QuEPTSettings, widths: Sequence[BitWidth], groups: BitGroups):
        super().__init__(settings, widths)
        self.groups = groups
        order = enumerate(reversed(groups.groups), start=1)
        self.ranks = {width.weight: RANK * place for place, group in order for width in group}

    def relax(self, layer: GridLayer) -> Relaxation | None:
        """Adapters, but for the edges."""
        if layer.quantizer.fixed:
            return None
        generator = torch.Generator().manual_seed(layer.weight.numel())
        return LowRankTerm(layer.weight, layer.quantizer.step_sizes(), self.ranks, generator)

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """One width from each group."""
        return self.groups.draw(generator)

    def begin(self, unit: Unit, features: Features) -> Sequence[dict[str, Any]]:
        """Clipping factors learn faster than adapters."""
        terms = [layer.quantizer.relaxation for layer in unit.layers]
        factors = [p for t in terms if isinstance(t, LowRankTerm) for d in (t.upper, t.lower) for p in d.values()]
        return [{"params": factors, "lr": self.settings.lr_clipping}]

    def hand_on(self, unit: Unit, quantized: MutableMapping[BitWidth, Feature], generator: torch.Generator) -> None:
        """One mixed feature for all widths; each image draws a width of each group."""
        x = values(next(iter(quantized.values())))  # the same at all widths
        features = []
        for group in self.groups.groups:
            drawn = torch.randint(len(group), (len(x),), generator=generator).to(x.device)
            feature: Tensor | None = None
            for number, width in enumerate(group):
                index = torch.nonzero(drawn == number)[:, 0]
                if len(index):
                    out = propagate(unit, take(x, index), width)
                    feature = out.new_empty(len(x), *out.shape[1:]) if feature is None else feature
                    feature[index] = out
            assert feature is not None
            features.append(feature)
        low, medium, high = features
        if low.dim() > 2:
            axis = channel_axis(low)
            shape = low.movedim(axis, -1).shape
            high, medium, low = (feature.movedim(axis, -1).flatten(1, -2) for feature in (high, medium, low))
            mixed = merge_tokens(high, medium, low, self.settings.lambdas).view(shape).movedim(-1, axis)
        else:  # logits enter nothing
            mixed = high
        quantized.update(dict.fromkeys(quantized, mixed))


@register
class QuEPT(Reconstruction):
    """Low-rank terms and clipping for each group of widths, on one mixed feature; one calibration for all widths."""

    name = "quept"
    style = ("QuEPT", "#AA4466", "*", (0, (4, 1, 1, 1)))
    Settings = QuEPTSettings
    groups: BitGroups

    def __init__(self, settings: dict[str, Any], widths: Sequence[BitWidth], groups: BitGroups | None = None):
        super().__init__(settings, widths, groups)
        if groups is None or len(groups) != 3 or set(self.widths) != set(groups.widths):
            raise InputError(
                "quept takes one width from each of three bit groups. Give groups: {low: [...], medium: [...], "
                "high: [...]}, and leave out widths and per_width."
            )

    def passes(self) -> Passes:
        """One pass for all widths."""
        return [QuEPTPass(self.settings, self.widths, self.groups)]
