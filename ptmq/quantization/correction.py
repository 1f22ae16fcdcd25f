"""A correction for every width and output channel of a layer: what rounding shifts on average is stored and undone.

At width b the layer gives  y_b = (1 + gain_b) · (layer without bias at the quantized weight) + bias + shift_b.
1 + gain scales the weight's grid and shift is added to the bias, so nothing is computed that a quantized layer does not
compute anyway, and a switch needs no image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.bits import FP, BitWidth

KINDS = ("none", "shift", "gain")  # nothing; the shift alone; gain and shift
BOUND = 1.5  # 1 + gain stays within 1 / BOUND .. BOUND: a nearly dead channel would ask for anything


def per_channel(values: Tensor, weight: Tensor) -> Tensor:
    """(out,) -> (out, 1, ...), to broadcast against the weight."""
    return values.view(-1, *[1] * (weight.dim() - 1))


class ChannelCorrection(nn.Module):
    """Gain and shift of one layer, (out,) each, one parameter a width, keyed by the width; 0 at first.

    A width that is none of them takes the correction of the one with its weight bits and the nearest activation bits;
    floating-point weights have none.
    """

    def __init__(self, channels: int, widths: Sequence[BitWidth]):
        super().__init__()
        self.widths = tuple(widths)
        self.gain = nn.ParameterDict({str(width): _frozen(channels) for width in self.widths})
        self.shift = nn.ParameterDict({str(width): _frozen(channels) for width in self.widths})
        self.selected: str | None = None
        self._folded: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # of a width: the weight given, and the two folded

    def select(self, width: BitWidth) -> None:
        """Take the correction of a width."""
        like = [known for known in self.widths if known.weight == width.weight and width.weight != FP]
        nearest = min(like, key=lambda known: abs(known.activation - width.activation), default=None)
        self.selected = None if nearest is None else str(nearest)

    def forward(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The weight (out, in, ...) and the bias (out,) with the selected correction folded into them."""
        if self.selected is None:
            return weight, bias
        kept = self._folded.get(self.selected)
        if kept is not None and kept[0] is weight:
            return kept[1], kept[2]
        gain, shift = self.gain[self.selected], self.shift[self.selected]
        folded = weight * per_channel(1 + gain, weight), shift if bias is None else bias + shift
        if not folded[0].requires_grad and not folded[1].requires_grad:
            self._folded[self.selected] = (weight, *folded)
        return folded

    @torch.no_grad()
    def set(self, width: BitWidth, gain: Tensor, shift: Tensor) -> None:
        """Store the correction of a width, (out,) each."""
        self.gain[str(width)].copy_(gain)
        self.shift[str(width)].copy_(shift)
        self.forget()

    def clear(self, width: BitWidth) -> None:
        """Correct nothing at a width."""
        self.set(width, torch.zeros_like(self.gain[str(width)]), torch.zeros_like(self.shift[str(width)]))

    def learn(self, learned: bool) -> None:
        """Have gains and shifts ask for gradients, or not."""
        self.requires_grad_(learned)
        self.forget()

    @torch.no_grad()
    def keep_bounded(self) -> None:
        """Undo an optimizer's move of a gain across its bounds."""
        for gain in self.gain.values():
            gain.clamp_(1 / BOUND - 1, BOUND - 1)

    def forget(self) -> None:
        """Drop what is folded."""
        self._folded.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.forget()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.forget()


def _frozen(channels: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(channels), requires_grad=False)


@dataclass
class Moments:
    """Mean and variance of every channel over images and positions, (channels,) each, added up batch by batch."""

    count: int = 0
    sum: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, y: Tensor, axis: int) -> None:
        """One more batch of a layer's output, whose channels lie along `axis`."""
        rows = y.movedim(axis, -1).flatten(0, -2)  # (values, channels)
        variance, mean = (moment.double() for moment in torch.var_mean(rows, 0, correction=0))
        self.count += len(rows)
        self.sum = self.sum + len(rows) * mean
        self.squares = self.squares + len(rows) * (variance + mean.square())

    @property
    def mean(self) -> Tensor:
        """Of every channel, (channels,)."""
        return self.sum / self.count

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of every channel, (channels,)."""
        return (self.squares / self.count - self.mean.square()).clamp_min(0).sqrt()


def matching(fp: Moments, quantized: Moments, bias: Tensor | None, with_gain: bool) -> tuple[Tensor, Tensor]:
    """Gain and shift, (out,) each, that give the quantized output of a layer the mean and deviation of the FP one.

    The gain is bounded, and 0 where either has no variance; the shift matches the mean whatever the gain.
    """
    known = (fp.deviation > 0) & (quantized.deviation > 0) & with_gain
    ratio = torch.where(known, fp.deviation / quantized.deviation, 1.0)
    gain = ratio.clamp(1 / BOUND, BOUND) - 1
    centre = quantized.mean if bias is None else quantized.mean - bias
    return gain.float(), (fp.mean - quantized.mean - gain * centre).float()
