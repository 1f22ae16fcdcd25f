"""Step sizes and zero points before learning: min-max, and the searches of the field.

Errors are the mean of |x - x_quantized|^p with p = 2.4 (BRECQ, QDrop). Inputs are rows: x has shape
(channels, values), and every channel gets its own step; per tensor is one row.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ptmq.quantization.fake_quantization import dequantize, largest_code, quantize
from ptmq.quantization.tiles import PART

POWER = 2.4
SHRINKS = 80  # BRECQ tries the full range and 79 that are 1 % smaller each
THRESHOLDS = 100  # QDrop tries 1 %, 2 %, ... 100 % of the range
BINS = 2**14  # a large tensor is searched on its histogram: 64 bins a step even at 8 bits
CHUNK = 2**20  # values that are sorted into bins at a time
SMALLEST_STEP = 1e-8
PARENT_BITS = 8  # of the code that nested widths share
FINEST = 2**-12  # of the coarsest channel's step: with a finer one a bias leaves 32 bits, and the channel is dead

# low, high (..., channels), bits -> step sizes, zero points (..., channels) of one grid or several
Grids = Callable[[Tensor, Tensor, int], Iterator[tuple[Tensor, Tensor]]]


def affine(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Step size and zero point of the grid that spans low .. high, each of low's shape."""
    step = ((high - low) / largest_code(bits)).clamp_min(SMALLEST_STEP)
    return step, torch.round(-low / step) + 0.0  # + 0.0 turns -0. into 0.


def own(low: Tensor, high: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The one grid that a width takes for a range when it has the choice to itself."""
    yield affine(low, high, bits)


def holding_zero(low: Tensor, high: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The grid of a range that is stretched to hold 0: its zero point is one of its codes, as integer kernels ask."""
    yield affine(low.clamp_max(0), high.clamp_min(0), bits)


def signed(low: Tensor, high: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, with every code minus the zero point in a signed byte: at 8 bits the zero point is 128."""
    if bits < PARENT_BITS:
        ((step, zero),) = holding_zero(low, high, bits)
    else:
        below = 2 ** (bits - 1)
        step = torch.maximum(-low / below, high / (below - 1)).clamp_min(SMALLEST_STEP)
        zero = torch.full_like(step, below)
    yield not_too_fine(step), zero


def not_too_fine(step: Tensor) -> Tensor:
    """Step sizes of channels, (..., channels), none of them far below the largest."""
    return step.clamp_min(step.amax(-1, keepdim=True) * FINEST)


def nested(lowest: int) -> Grids:
    """Grids of which that at b bits holds every 2^(8-b)-th value of that at 8 bits, down to `lowest` bits.

    Step sizes are a power of two apart and zero points too, so 0 is on every grid; a range is stretched to hold it. As
    zero points are multiples of 2^(b-lowest), a grid of just the range's width lies beside it and clips on one side.
    First comes the narrowest grid that holds the whole range, then two of its width, which clip above or below.
    """

    def grids(low: Tensor, high: Tensor, bits: int) -> Iterator[tuple[Tensor, Tensor]]:
        low, high = low.clamp_max(0), high.clamp_min(0)
        step, _ = affine(low, high, bits)
        finer, nothing = 2 ** (bits - lowest), torch.zeros_like(low)
        coarse = torch.floor(-low / (step * finer))
        zeros = [(coarse + up).clamp(0, largest_code(lowest)) * finer for up in (0, 1)]
        below, above = (
            torch.maximum(
                torch.where(low < 0, -low / zero, nothing),
                torch.where(high > 0, high / (largest_code(bits) - zero), nothing),
            ).clamp_min(SMALLEST_STEP)
            for zero in zeros
        )
        yield torch.minimum(below, above), torch.where(below <= above, zeros[0], zeros[1])
        for zero in zeros:
            yield step, zero

    return grids


def minmax(x: Tensor, bits: int, grids: Grids = own) -> tuple[Tensor, Tensor]:
    """Step and zero point of the whole range, stretched to hold 0. x: (channels, values) -> (channels,) each."""
    return next(iter(grids(x.amin(1).clamp_max(0), x.amax(1).clamp_min(0), bits)))


def grid_error(x: Tensor, count: Tensor | None, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Mean |x - x_q|^p of each row, (..., channels), as step and zero_point are.

    `count`: how often each value occurs, None for once.
    """
    step, zero_point = step[..., None], zero_point[..., None]
    error = (x - dequantize(quantize(x, step, zero_point, bits), step, zero_point)).abs_().pow_(POWER)
    return error.mean(-1) if count is None else (error * count).sum(-1) / count.sum(-1)


def _best(low: Tensor, high: Tensor, x: Tensor, count: Tensor | None, bits: int, grids: Grids) -> tuple[Tensor, Tensor]:
    """The (step, zero_point) with the least error for each row; the first of equals wins.

    low, high: (ranges, channels), whose grids are tried. Of a small tensor many are tried at once, because each would
    take no longer than its operations take to begin.
    """
    best = torch.full_like(x[:, 0], torch.inf)
    step, zero_point = torch.ones_like(best), torch.zeros_like(best)
    at_once = max(1, PART // x.numel())
    for some in zip(low.split(at_once), high.split(at_once), strict=True):
        found = [(grid_error(x, count, *grid, bits), *grid) for grid in grids(*some, bits)]
        # (ranges * grids, channels): all grids of a range, then those of the next
        errors, steps, zeros = (torch.stack(part, 1).flatten(0, 1) for part in zip(*found, strict=True))
        least = errors.nan_to_num_(nan=torch.inf, posinf=torch.inf).amin(0, keepdim=True)
        order = torch.arange(len(errors), device=x.device)[:, None]
        first = torch.where(errors == least, order, len(errors)).amin(0, keepdim=True)
        better = least[0] < best
        best = torch.where(better, least[0], best)
        step = torch.where(better, steps.gather(0, first)[0], step)
        zero_point = torch.where(better, zeros.gather(0, first)[0], zero_point)
    return step, zero_point


def shrink(x: Tensor, bits: int, count: Tensor | None = None, grids: Grids = own) -> tuple[Tensor, Tensor]:
    """Shrink (min, max), stretched to hold 0, together by 0 %, 1 %, .. 79 %. x: (channels, values) -> (channels,) each.

    BRECQ's search but for the 0: as it is on the grid, the zero point is a code, as kernels of integers need it.
    """
    return _shrunk(x.amin(1).clamp_max(0), x.amax(1).clamp_min(0), x, count, bits, grids)


def brecq(x: Tensor, bits: int, count: Tensor | None = None, grids: Grids = own) -> tuple[Tensor, Tensor]:
    """BRECQ's search as it is: (min, max) need not hold 0, and a zero point may lie outside of 0 .. 2^bits - 1."""
    return _shrunk(x.amin(1), x.amax(1), x, count, bits, grids)


def _shrunk(
    low: Tensor, high: Tensor, x: Tensor, count: Tensor | None, bits: int, grids: Grids
) -> tuple[Tensor, Tensor]:
    factors = x.new_tensor([1 - 0.01 * i for i in range(SHRINKS)])[:, None]
    return _best(low * factors, high * factors, x, count, bits, grids)


def shift(x: Tensor, bits: int, count: Tensor | None = None, grids: Grids = own) -> tuple[Tensor, Tensor]:
    """QDrop's search: for values on both sides of 0, every range and every zero point; else every threshold.

    x: (channels, values) -> (channels,) each. It tries 100 * 2^bits grids on two-sided input, so it is slow
    at 8 bits. One-sidedness is decided for the whole tensor, as in the reference.
    """
    low, high = x.amin(1), x.amax(1)
    shares = x.new_tensor(range(1, THRESHOLDS + 1))[:, None]
    if (low >= 0).all() or (high <= 0).all():
        threshold = torch.maximum(low.abs(), high) / THRESHOLDS * shares
        nothing = torch.zeros_like(threshold)
        ends = (nothing, threshold) if low.amin() >= 0 else (-threshold, nothing)
    else:
        span = ((high - low) / THRESHOLDS * shares)[:, None]  # (thresholds, 1, channels)
        below = span / largest_code(bits) * x.new_tensor(range(largest_code(bits) + 1))[:, None]
        ends = (-below).flatten(0, 1), (span - below).flatten(0, 1)
    return _best(*ends, x, count, bits, grids)


Search = Callable[
    ..., tuple[Tensor, Tensor]
]  # (x, bits, count=None, grids=own) -> step size and zero point, (channels,) each
SEARCHES: dict[str, Search] = {
    "minmax": lambda x, bits, count=None, grids=own: minmax(x, bits, grids),
    "shrink": shrink,
    "brecq": brecq,
    "shift": shift,
}


class Histogram:
    """How often values of a tensor occur, for a search. The tensor may come in parts, in the same order twice.

    First every part is measured, then every part is counted. A small tensor is kept as it is. A large one becomes the
    centres of BINS equal bins, with the true minimum and maximum added at no weight, so that the range searched is
    exact.
    """

    def __init__(self) -> None:
        self.size = 0
        self.low = self.high = torch.tensor(0.0)
        self._kept: list[Tensor] = []
        self._zeros = self._bins = torch.tensor(0)

    @classmethod
    def of(cls, x: Tensor) -> "Histogram":
        """Of a whole tensor, any shape."""
        found = cls()
        found.measure(x)
        found.count(x)
        return found

    def measure(self, part: Tensor) -> None:
        """Learn of the range of a part, any shape."""
        low, high = part.detach().aminmax()
        if self.size:
            low, high = torch.minimum(self.low, low), torch.maximum(self.high, high)
        self.low, self.high = low, high
        self.size += part.numel()

    @property
    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return bool(self.low.isfinite() & self.high.isfinite())

    def count(self, part: Tensor) -> None:
        """Count the values of a part, any shape; all parts were measured before."""
        part = part.detach().reshape(-1)
        if self.size <= BINS:
            self._kept.append(part)
            return
        # Exact zeros (a ReLU's) carry no error on a grid that holds 0: kept apart, not moved to a bin's centre.
        self._zeros = self._zeros.to(part.device) + (part == 0).sum()
        self._bins = self._bins.to(part.device)
        scale = BINS / (self.high - self.low).clamp_min(SMALLEST_STEP)
        for few in part.split(CHUNK):  # a code takes eight bytes: not of all values at once
            bins = ((few - self.low) * scale).long().clamp_(0, BINS - 1)
            self._bins = self._bins + torch.bincount(bins[few != 0], minlength=BINS)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Values as rows for a search, (1, count), and how often each occurs, (1, count)."""
        if self.size <= BINS:
            x = torch.cat(self._kept)[None]
            return x, torch.ones_like(x)
        dtype, device = self.low.dtype, self.low.device
        width = (self.high - self.low) / BINS
        centres = self.low + width * (torch.arange(BINS, device=device) + 0.5)
        middle = torch.where(self._zeros > 0, 0.0, self.low)  # 0 only where it occurs, so the range stays the true one
        values = torch.cat([centres, torch.stack([self.low, self.high, middle])])
        nothing = torch.zeros((), dtype=dtype, device=device)
        counts = torch.cat([self._bins.to(dtype), torch.stack([nothing, nothing, self._zeros.to(dtype)])])
        return values[None], counts[None]
