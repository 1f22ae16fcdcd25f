"""The quantizer of an activation: per tensor, asymmetric, with a learned step size for every width (LSQ).

LSQ: https://arxiv.org/abs/1902.08153. Dropping while learning is QDrop's: https://arxiv.org/abs/2203.05740.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import FP, require_width
from ptmq.quantization.fake_quantization import Bounds, KeepMask, draw_mask, fake_quantize_activation
from ptmq.quantization.quantizer import Quantizer
from ptmq.quantization.step_size import SEARCHES, SMALLEST_STEP, Grids, Histogram, own

# Activation functions that keep a value within bounds, and these.
RELUS: dict[Callable, Bounds] = {F.relu: (0.0, math.inf), F.relu6: (0.0, 6.0)}


@dataclass(frozen=True)
class Drop:
    """QDrop: while learning, an element stays quantized with probability `keep`, anew at every call.

    compiled: by torch.compile.
    """

    keep: float
    generator: torch.Generator
    compiled: bool = False


class ActivationQuantizer(Quantizer):
    """Fake quantization of a tensor at the selected width.

    step: one parameter a width, (1,) each, keyed by bits (so that an optimizer leaves alone the widths that
    an iteration did not draw) · zero_point: (widths,), frozen. `fixed` names a width that it keeps whatever is
    selected. grids: those that the search may take, see `ptmq.quantization.step_size`.
    """

    zero_point: Tensor

    def __init__(self, widths: Sequence[int], fixed: int | None = None, grids: Grids = own):
        super().__init__()
        self.fixed, self.grids = fixed, grids
        self.widths = [fixed] if fixed else sorted(set(widths) - {FP})
        self.step = nn.ParameterDict({str(bits): nn.Parameter(torch.ones(1)) for bits in self.widths})
        self.register_buffer("zero_point", torch.zeros(len(self.widths)))
        self.relu: Callable | None = None  # what it does to its input first, one of RELUS
        self.drop: Drop | None = None
        self._zero: dict[int, int] = {}  # zero points as Python numbers, so that a GPU need not be asked

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape at the selected width, of the same shape."""
        if self.bits == FP:
            return x if self.relu is None else self.relu(x)
        x = x.to(self.step[str(self.bits)].dtype)  # under autocast layers put out bfloat16, too coarse for 8 bits
        keep: KeepMask | None = None
        drop = self.drop
        if drop is not None and drop.keep < 1:
            keep = draw_mask(x.numel(), drop.keep, drop.generator)
        compiled = drop is not None and drop.compiled
        bounds = RELUS[self.relu] if self.relu else None
        return fake_quantize_activation(x, *self.grid(), self.bits, keep, compiled=compiled, bounds=bounds)

    def grid(self) -> tuple[Tensor, int]:
        """Step size, (1,), and zero point of the selected width."""
        return self.step[str(self.bits)], self._zero_at(self.bits)

    def set_bits(self, bits: int) -> None:
        """Select a width; FP passes the activation through."""
        bits = self.fixed if self.fixed and bits != FP else bits
        require_width(bits, self.widths, "activation quantizer")
        self.bits = bits

    def search_step_sizes(self, x: Tensor, search: str) -> None:
        """Set the step size and zero point of every width by `search` on the values of x, any shape."""
        self.search_in(Histogram.of(x), search)

    def search_in(self, histogram: Histogram, search: str) -> None:
        """Set the step size and zero point of every width by `search` on values of which a histogram is known."""
        values, count = histogram.rows()
        for index, bits in enumerate(self.widths):
            step, zero = SEARCHES[search](values, bits, count, grids=self.grids)
            self.step[str(bits)].data.copy_(step)
            self.zero_point[index] = zero[0]
        self._zero.clear()

    def keep_step_sizes_positive(self) -> None:
        """Undo an optimizer's move across zero."""
        for step in self.step.values():
            step.data.clamp_(min=SMALLEST_STEP)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self._zero.clear()

    def _zero_at(self, bits: int) -> int:
        if bits not in self._zero:
            self._zero[bits] = int(self.zero_point[self.widths.index(bits)])
        return self._zero[bits]
