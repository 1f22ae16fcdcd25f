"""The quantizer of a layer's weight: grid, search, rounding and the state of every width in one object.

The layer only holds it and asks it for the weight. A new kind of weight quantization is a subclass of WeightQuantizer.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ptmq.common.bits import FP, require_width
from ptmq.quantization.fake_quantization import dequantize, largest_code
from ptmq.quantization.quantizer import Quantizer
from ptmq.quantization.rounding import Relaxation
from ptmq.quantization.step_size import SEARCHES


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


class RoundedWeightQuantizer(WeightQuantizer):
    """Asymmetric grids per output channel with stored rounding, for a weight that does not change.

    step, zero_point: (widths, out) · rounding: integer, (1, *shape) when all widths share it and (widths, *shape) when
    each has its own. The code at width b is clip(floor(weight / step_b) + rounding + zero_b, 0, 2^b - 1).

    `fixed` names a width that it keeps whatever is selected (the first and the last layer).
    """

    step: Tensor
    zero_point: Tensor
    rounding: Tensor

    def __init__(self, shape: Sequence[int], widths: Sequence[int], fixed: int | None = None):
        super().__init__()
        self.fixed = fixed
        self.widths = [fixed] if fixed else sorted(set(widths) - {FP})
        self.register_buffer("step", torch.ones(len(self.widths), shape[0]))
        self.register_buffer("zero_point", torch.zeros(len(self.widths), shape[0]))
        self.register_buffer("rounding", torch.zeros(1, *shape, dtype=torch.int8))
        self.relaxation: Relaxation | None = None  # set while the rounding is being learned
        self._weights: dict[int, Tensor] = {}  # the weight at each width used so far

    def set_bits(self, bits: int) -> None:
        """Select a width; FP for the floating-point weight. Nothing is recomputed."""
        bits = self.fixed if self.fixed and bits != FP else bits
        require_width(bits, self.widths, "layer")
        self.bits = bits

    def quantized(self, weight: Tensor, bits: int) -> Tensor:
        """The weight at `bits`, of its shape; kept once computed."""
        if bits not in self._weights:
            index = self.widths.index(bits)
            step, zero = self._per_channel(self.step[index]), self._per_channel(self.zero_point[index])
            self._weights[bits] = dequantize(self.codes(weight, bits).to(step.dtype), step, zero)
        return self._weights[bits]

    def codes(self, weight: Tensor, bits: int) -> Tensor:
        """Integer codes 0 .. 2^bits - 1 of the weight, uint8, of its shape."""
        index = self.widths.index(bits)
        step, zero = self._per_channel(self.step[index]), self._per_channel(self.zero_point[index])
        rounding = self.rounding[index if len(self.rounding) > 1 else 0]
        return torch.clamp(torch.floor(weight / step) + rounding + zero, 0, largest_code(bits)).to(torch.uint8)

    def search_step_sizes(self, weight: Tensor, search: str) -> None:
        """Set the step size and zero point of every width by `search`, and round to nearest."""
        rows = weight.detach().flatten(1)  # (out, in * kh * kw)
        nearest = []
        for index, bits in enumerate(self.widths):
            self.step[index], self.zero_point[index] = SEARCHES[search](rows, bits)
            step = self._per_channel(self.step[index])
            # round to nearest is the one rounding that differs by width: ties to even, as torch.round
            nearest.append(torch.round(weight / step) - torch.floor(weight / step))
        self.set_rounding(torch.stack(nearest).to(torch.int8))

    def set_rounding(self, rounding: Tensor, step_sizes: dict[int, Tensor] | None = None) -> None:
        """Take hard rounding values, integers, (1 or widths, *shape), and learned step sizes, (out, 1, ...)."""
        self.rounding, self.relaxation = rounding, None
        for bits, step in (step_sizes or {}).items():
            self.step[self.widths.index(bits)] = step.flatten()
        self._weights.clear()

    def step_sizes(self) -> dict[int, Tensor]:
        """Step size of each width, (out, 1, ...)."""
        return {bits: self._per_channel(self.step[i]) for i, bits in enumerate(self.widths)}

    def zero_points(self) -> dict[int, Tensor]:
        """Zero point of each width, (out, 1, ...)."""
        return {bits: self._per_channel(self.zero_point[i]) for i, bits in enumerate(self.widths)}

    def soften(self, widths: Iterable[int]) -> None:
        """Refresh the soft weights at `widths` from the relaxation: once an iteration, before the forward passes."""
        assert self.relaxation is not None
        wanted = {self.fixed} if self.fixed else set(widths) - {FP}
        self._weights.update(self.relaxation.soft(wanted))

    def harden(self) -> None:
        """End the learning: store the rounding and the step sizes that the relaxation has come to."""
        assert self.relaxation is not None
        self.set_rounding(self.relaxation.hard(), self.relaxation.step_sizes)

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

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a saved rounding whether it is one for all widths or one a width; forget computed weights."""
        if f"{prefix}rounding" in state_dict:
            saved = state_dict[f"{prefix}rounding"]
            self.rounding = torch.empty_like(saved, device=self.rounding.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._weights.clear()

    def _per_channel(self, values: Tensor) -> Tensor:
        """(out,) -> (out, 1, ...), to broadcast against the weight."""
        return values.view(-1, *[1] * (self.rounding.dim() - 2))
