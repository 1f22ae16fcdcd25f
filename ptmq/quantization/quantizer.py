"""What switches its width in a network: the quantizer of a weight or of an activation, the correction of a layer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.common.bits import FP, BitWidth
from ptmq.quantization.step_size import Histogram

KINDS = ("none", "shift", "gain")  # nothing; the shift alone; gain and shift
BOUND = 1.5  # 1 + gain stays within 1 / BOUND .. BOUND: a nearly dead channel would ask for anything


class Quantizer(nn.Module):
    """Gives a tensor at the selected width, of the same shape; at FP as it is.

    A new kind is a subclass with a `forward`; at first FP is selected.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bits = FP

    def set_bits(self, bits: int) -> None:
        """Select a width."""
        self.bits = bits

    def search_step_sizes(self, x: Tensor, search: str) -> None:
        """Set step sizes from the values of x by `search`; a quantizer without any has nothing to set."""

    def search_in(self, histogram: Histogram, search: str) -> None:
        """Set step sizes by `search` from the values that passed through the quantizer."""


class ChannelCorrection(nn.Module):
    """What rounding moves on average in a layer's output, undone for every width and output channel.

    At width b the layer gives  (1 + gain_b) · (layer without bias) + bias + shift_b,  gain and shift (out,) each, one
    parameter a width, 0 at first. The gain scales the weight's grid and the shift is added to the bias, so nothing is
    computed that a quantized layer does not compute anyway, and a switch needs no image.

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
        folded = weight * (1 + gain).view(-1, *[1] * (weight.dim() - 1)), shift if bias is None else bias + shift
        if not folded[0].requires_grad and not folded[1].requires_grad:
            self._folded[self.selected] = (weight, *folded)
        return folded

    def factor(self) -> Tensor | float:
        """What the selected correction multiplies the weight's step sizes by, (out,)."""
        return 1.0 if self.selected is None else 1 + self.gain[self.selected]

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
