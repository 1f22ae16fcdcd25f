"""The quantizer of a layer's weight: grid, search, rounding and the state of every width in one object.

The layer only holds it and asks it for the weight. A new kind of weight quantization is a subclass of WeightQuantizer.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmq.common.bits import FP, require_width
from ptmq.quantization.fake_quantization import dequantize, largest_code, quantize
from ptmq.quantization.quantizer import Quantizer
from ptmq.quantization.rounding import Relaxation
from ptmq.quantization.step_size import PARENT_BITS, SEARCHES, Grids, nested, not_too_fine, own, signed

TIES = ("even", "up")


class WeightQuantizer(Quantizer):
    """What a layer sees of its weight at the selected width.

    Subclasses give `quantized(weight, bits)`; through it gradients may reach the weight.
    """

    def forward(self, weight: Tensor) -> Tensor:
        """The weight (out, in, ...) as the network sees it, of its shape."""
        return weight if self.bits == FP else self.quantized(weight, self.bits)

    def quantized(self, weight: Tensor, bits: int) -> Tensor:
        """The weight at `bits`, of its shape."""
        raise NotImplementedError


class GridWeightQuantizer(WeightQuantizer):
    """Asymmetric grids per output channel for a weight that does not change: codes at every width, kept once computed.

    Subclasses give `codes`, `grid`, `search_step_sizes` and `set_rounding`. `fixed` names a width that it keeps
    whatever is selected (the first and the last layer).
    stands_alone: whether its codes need no floating-point weight, so that a saved model holds none.
    """

    stands_alone: ClassVar[bool] = False

    def __init__(self, shape: Sequence[int], widths: Sequence[int], fixed: int | None = None):
        super().__init__()
        self.shape, self.fixed = torch.Size(shape), fixed
        self.widths = [fixed] if fixed else sorted(set(widths) - {FP})
        self.relaxation: Relaxation | None = None  # set while the rounding is being learned
        self._weights: dict[int, Tensor] = {}  # the weight at each width used so far

    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """Integer codes 0 .. 2^bits - 1 of the weight, uint8, of its shape."""
        raise NotImplementedError

    def grid(self, bits: int) -> tuple[Tensor, Tensor]:
        """Step size and zero point at `bits`, (out, 1, ...) each."""
        raise NotImplementedError

    def search_step_sizes(self, weight: Tensor, search: str) -> None:
        """Set the step size and zero point of every width by `search`, and round to nearest."""
        raise NotImplementedError

    def set_rounding(
        self,
        rounding: Tensor,
        step_sizes: Mapping[int, Tensor] | None = None,
        zero_points: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Take what a relaxation has come to: its hard rounding, and step sizes and zero points, (out, 1, ...) each."""
        raise NotImplementedError

    def bits_per_weight(self) -> float:
        """Bits that a weight takes for all widths together; what there is for each output channel is not counted."""
        raise NotImplementedError

    def set_bits(self, bits: int) -> None:
        """Select a width; FP for the floating-point weight. Nothing is recomputed."""
        bits = self.fixed if self.fixed and bits != FP else bits
        require_width(bits, self.widths, "layer")
        self.bits = bits

    def quantized(self, weight: Tensor, bits: int) -> Tensor:
        """The weight at `bits`, of its shape; kept once computed."""
        if bits not in self._weights:
            step, zero = self.grid(bits)
            self._weights[bits] = dequantize(self.codes(weight, bits).to(step.dtype), step, zero)
        return self._weights[bits]

    def step_sizes(self) -> dict[int, Tensor]:
        """Step size of each width, (out, 1, ...)."""
        return {bits: self.grid(bits)[0] for bits in self.widths}

    def zero_points(self) -> dict[int, Tensor]:
        """Zero point of each width, (out, 1, ...)."""
        return {bits: self.grid(bits)[1] for bits in self.widths}

    def soften(self, widths: Iterable[int]) -> None:
        """Refresh the soft weights at `widths` from the relaxation: once an iteration, before the forward passes."""
        assert self.relaxation is not None
        wanted = {self.fixed} if self.fixed else set(widths) - {FP}
        self._weights.update(self.relaxation.soft(wanted))

    def harden(self) -> None:
        """End the learning: store the rounding and the step sizes that the relaxation has come to."""
        assert self.relaxation is not None
        found = self.relaxation
        self.set_rounding(found.hard(), found.step_sizes, found.learned_zero_points)

    def prepared(self) -> Iterable[Tensor]:
        """The weights that are kept ready."""
        return self._weights.values()

    def forget(self) -> None:
        """Drop the weights that are kept ready."""
        self._weights.clear()

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        """Moved or cast: weights computed before belong to the old place."""
        self._weights.clear()
        return super()._apply(*args, **kwargs)

    def _take_shape_of(self, name: str, state_dict: dict[str, Any], prefix: str) -> None:
        """Before a saved buffer is read: one whose shape only the calibration knows is made anew."""
        if f"{prefix}{name}" in state_dict:
            saved = state_dict[f"{prefix}{name}"]
            setattr(self, name, torch.empty_like(saved, device=getattr(self, name).device))
        self._weights.clear()

    def _per_channel(self, values: Tensor) -> Tensor:
        """(out,) -> (out, 1, ...), to broadcast against the weight."""
        return values.view(-1, *[1] * (len(self.shape) - 1))


class RoundedWeightQuantizer(GridWeightQuantizer):
    """Every width has its own step size and zero point, and the stored rounding is added to the weight rounded down.

    step, zero_point: (widths, out) · rounding: integer, (1, *shape) when all widths share it and (widths, *shape) when
    each has its own. The code at width b is clip(floor(weight / step_b) + rounding + zero_b, 0, 2^b - 1).
    grids: those that the search may take, see `ptmq.quantization.step_size`.
    """

    step: Tensor
    zero_point: Tensor
    rounding: Tensor

    def __init__(self, shape: Sequence[int], widths: Sequence[int], fixed: int | None = None, grids: Grids = own):
        super().__init__(shape, widths, fixed)
        self.grids = grids
        self.register_buffer("step", torch.ones(len(self.widths), shape[0]))
        self.register_buffer("zero_point", torch.zeros(len(self.widths), shape[0]))
        self.register_buffer("rounding", torch.zeros(1, *shape, dtype=torch.int8))

    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """Integer codes 0 .. 2^bits - 1 of the weight, uint8, of its shape."""
        step, zero = self.grid(bits)
        rounding = self.rounding[self.widths.index(bits) if len(self.rounding) > 1 else 0]
        return torch.clamp(torch.floor(weight / step) + rounding + zero, 0, largest_code(bits)).to(torch.uint8)

    def grid(self, bits: int) -> tuple[Tensor, Tensor]:
        """Step size and zero point at `bits`, (out, 1, ...) each."""
        index = self.widths.index(bits)
        return self._per_channel(self.step[index]), self._per_channel(self.zero_point[index])

    def bits_per_weight(self) -> float:
        """Packed codes of every width, or the FP32 weight and its rounding, whichever is less."""
        return min(sum(self.widths), 32 + len(self.rounding))

    def search_step_sizes(self, weight: Tensor, search: str) -> None:
        """Set the step size and zero point of every width by `search`, and round to nearest."""
        rows = weight.detach().flatten(1)  # (out, in * kh * kw)
        nearest = []
        for index, bits in enumerate(self.widths):
            self.step[index], self.zero_point[index] = SEARCHES[search](rows, bits, grids=self.grids)
            step = self._per_channel(self.step[index])
            # round to nearest is the one rounding that differs by width: ties to even, as torch.round
            nearest.append(torch.round(weight / step) - torch.floor(weight / step))
        self.set_rounding(torch.stack(nearest).to(torch.int8))

    def set_rounding(
        self,
        rounding: Tensor,
        step_sizes: Mapping[int, Tensor] | None = None,
        zero_points: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Take hard rounding values, integers, (1 or widths, *shape), and what was learned of the grids.

        step_sizes, zero_points: (out, 1, ...) each. Of fewer widths than there are, the keys of `step_sizes`, the
        rounding of the others stays.
        """
        at = [self.widths.index(bits) for bits in step_sizes or ()]
        if 1 < len(self.widths) != len(rounding) == len(at):
            rounding = self.rounding.index_copy(0, torch.tensor(at, device=rounding.device), rounding)
        self.rounding, self.relaxation = rounding, None
        for index, step in zip(at, (step_sizes or {}).values(), strict=True):
            self.step[index] = step.flatten()
        for bits, zero_point in (zero_points or {}).items():
            self.zero_point[self.widths.index(bits)] = zero_point.flatten()
        self._weights.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a saved rounding whether it is one for all widths or one a width; forget computed weights."""
        self._take_shape_of("rounding", state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


class NestedWeightQuantizer(GridWeightQuantizer):
    """One 8-bit code for all widths: steps and zero points are a power of two apart, and a width is a shift away.

    step: (out,), at 8 bits · zero_point: uint8, (out,), at 8 bits · code: uint8, of the weight's shape · learned:
    uint8, (widths with a plane,) · planes: uint8, (widths with a plane, bytes), one learned bit a weight, packed. At b
    bits the code is clip(code >> (8 - b) + plane_b, 0, 2^b - 1) where there is a plane, else rounded to nearest. The
    floating-point weight is not needed any more.

    anchor: the width at which the search measures the error of the grid · in_a_byte: keep code minus zero point within
    a signed byte, as integer kernels ask. Below 8 bits it always is; a channel whose 8-bit codes leave it has 7 bits
    there, and one that is fixed at 8 bits the zero point 128 · ties: see `narrowed`.
    """

    stands_alone = True
    step: Tensor
    zero_point: Tensor
    code: Tensor
    learned: Tensor
    planes: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        widths: Sequence[int],
        fixed: int | None = None,
        anchor: int = 4,
        in_a_byte: bool = False,
        ties: str = "even",
    ):
        super().__init__(shape, widths, fixed)
        self.in_a_byte, self.ties = in_a_byte, ties
        self.anchor = min(max(anchor, self.widths[0]), self.widths[-1])
        self.register_buffer("step", torch.ones(shape[0]))
        self.register_buffer("zero_point", torch.zeros(shape[0], dtype=torch.uint8))
        self.register_buffer("code", torch.zeros(*shape, dtype=torch.uint8))
        self.register_buffer("learned", torch.zeros(0, dtype=torch.uint8))
        self.register_buffer("planes", torch.zeros(0, 0, dtype=torch.uint8))

    def codes(self, weight: Tensor | None, bits: int) -> Tensor:
        """Integer codes 0 .. 2^bits - 1, uint8, of the weight's shape; the weight itself is not looked at."""
        learned, shift = self.learned.tolist(), self.shift(bits)
        if bits in learned:
            plane = unpack_bits(self.planes[learned.index(bits)], self.code.numel()).view(self.shape)
            codes = (self.code.int() >> shift) + plane
        else:
            codes = narrowed(self.code, shift, self.ties)
        return _laid_out(torch.minimum(codes, 2 ** (PARENT_BITS - shift) - 1).to(torch.uint8))

    def shift(self, bits: int) -> Tensor:
        """How far the code is shifted at `bits`, int32, (out, 1, ...)."""
        shift = self._per_channel(torch.full_like(self.zero_point, PARENT_BITS - bits, dtype=torch.int32))
        if not self.in_a_byte or bits < PARENT_BITS:
            return shift
        above = self.code.flatten(1).int() - self.zero_point[:, None].int()  # (out, in * kh * kw)
        return shift + self._per_channel((above.amin(1) < -(2**7)) | (above.amax(1) >= 2**7))

    def bits_per_weight(self) -> float:
        """The code and the planes, as they are saved."""
        return 8 * (self.code.numel() + self.planes.numel()) / self.code.numel()

    def floors(self, bits: int) -> Tensor:
        """The code at `bits` rounded down, a float tensor of the weight's shape."""
        return _laid_out((self.code.int() >> self.shift(bits)).to(self.step.dtype))

    def grid(self, bits: int) -> tuple[Tensor, Tensor]:
        """Step size and zero point at `bits`, (out, 1, ...) each."""
        finer = 2.0 ** self.shift(bits).to(self.step.dtype)
        return self._per_channel(self.step) * finer, self._per_channel(self.zero_point.to(self.step.dtype)) / finer

    def search_step_sizes(self, weight: Tensor, search: str) -> None:
        """Set the grid by `search` at the anchor width, and round to nearest at 8 bits."""
        grids = signed if self.in_a_byte and self.widths == [PARENT_BITS] else nested(self.widths[0])
        step, zero = SEARCHES[search](weight.detach().flatten(1), self.anchor, grids=grids)
        finer = 2 ** (PARENT_BITS - self.anchor)
        step, zero = (not_too_fine(step) if self.in_a_byte else step) / finer, zero * finer
        code = quantize(weight.detach(), self._per_channel(step), self._per_channel(zero), PARENT_BITS)
        self.set_code(code.to(torch.uint8), step, zero.to(torch.uint8))

    def set_code(self, code: Tensor, step: Tensor, zero_point: Tensor) -> None:
        """Take a code, uint8, of the weight's shape, on a grid at 8 bits, (out,); every width is rounded to nearest."""
        self.code, self.step, self.zero_point = code.contiguous(), step, zero_point
        self.learned, self.planes = self.learned[:0], self.planes[:0, :0]
        self._weights.clear()

    def set_rounding(
        self,
        rounding: Tensor,
        step_sizes: Mapping[int, Tensor] | None = None,
        zero_points: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Take hard rounding values in {0, 1}, (learned widths, *shape); the keys of `step_sizes` are the widths."""
        widths = sorted(step_sizes or {})
        self.learned = torch.tensor(widths, dtype=torch.uint8, device=self.code.device)
        self.planes = torch.stack([pack_bits(plane) for plane in rounding])
        self.relaxation = None
        self._weights.clear()

    def absorb(self) -> None:
        """Move every byte to the nearest one that rounds as the widest plane says, and drop that plane.

        The code at its width and what is learned below it stay as they are. Widths of more bits move with the byte, at
        most by half a step of its width and one of the byte. Of at most 6 bits: at 7 the byte has no room to move.
        """
        bits = int(self.learned[-1])
        assert bits <= 6
        shift, code = PARENT_BITS - bits, self.code.int()
        up = unpack_bits(self.planes[-1], code.numel()).view(self.shape).bool()
        floor = code >> shift
        middle = (floor << shift) + 2 ** (shift - 1)
        tie_goes_up = narrowed(middle, shift, self.ties) > floor
        lowest, highest = middle + (~tie_goes_up).int(), middle - tie_goes_up.int()
        moved = torch.where(up, code.maximum(lowest), code.minimum(highest))
        self.code = torch.where(floor < 2**bits - 1, moved, code).to(torch.uint8)  # the last code has none above it
        self.learned, self.planes = self.learned[:-1].clone(), self.planes[:-1].clone()
        self._weights.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take as many planes as were saved; forget computed weights."""
        for name in ("learned", "planes"):
            self._take_shape_of(name, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def narrowed(codes: Tensor, shift: Tensor | int, ties: str) -> Tensor:
    """8-bit codes with `shift` bits less, rounded to nearest and not clipped: int32, of their shape.

    ties: where a code in the middle between two goes, one of `TIES`. A byte has many, at 7 bits every other code;
    upwards they move the weights by half an 8-bit step on average, whatever the width.
    """
    exact = codes / 2.0**shift
    return (torch.round(exact) if ties == "even" else torch.floor(exact + 0.5)).int()


def _laid_out(weight: Tensor) -> Tensor:
    """A weight as convolutions run fastest, whatever it was computed from."""
    return weight.contiguous(memory_format=torch.channels_last) if weight.dim() == 4 else weight


def pack_bits(bits: Tensor) -> Tensor:
    """Bits, 0 or 1, of any shape -> eight to a byte, the first one lowest: uint8, (bytes,)."""
    padded = F.pad(bits.flatten().to(torch.uint8), (0, -bits.numel() % 8))
    return (padded.view(-1, 8) << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, count: int) -> Tensor:
    """The inverse of `pack_bits`: uint8 zeros and ones, (count,)."""
    bits = packed[:, None] >> torch.arange(8, dtype=torch.uint8, device=packed.device) & 1
    return bits.flatten()[:count]
