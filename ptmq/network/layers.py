"""The two modules that quantization puts into a network: layers with quantized weights, activation quantizers.

Both hold one set of step sizes for every width they can take and work at the width selected last.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.common.bits import FP
from ptmq.quantization.fake_quantization import Bounds, dequantize, draw_mask, fake_quantize_activation, levels
from ptmq.quantization.rounding import Relaxation
from ptmq.quantization.step_size import SEARCHES, SMALLEST_STEP, histogram

# Activation functions that keep a value within bounds, and these.
RELUS: dict[Callable, Bounds] = {F.relu: (0.0, math.inf), F.relu6: (0.0, 6.0)}


def _require(bits: int, known: Sequence[int], what: str) -> None:
    if bits != FP and bits not in known:
        raise ValueError(f"{what} has no {bits}-bit step size. Calibrated widths: {', '.join(map(str, known))}.")


def convolution_of(layer: nn.Conv2d | nn.Linear) -> dict[str, Any] | None:
    """How a convolution moves over its input; None of a linear layer."""
    if isinstance(layer, nn.Conv2d):
        return {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}
    return None


def run_layer(x: Tensor, weight: Tensor, bias: Tensor | None, conv: dict[str, Any] | None) -> Tensor:
    """A convolution, or without `conv` a linear layer, with this weight."""
    return F.linear(x, weight, bias) if conv is None else F.conv2d(x, weight, bias, **conv)


class QuantizedLayer(nn.Module):
    """A convolution or linear layer whose weight is quantized per output channel at the selected width.

    weight: (out, in, ...) in floating point · step, zero_point: (widths, out) · rounding: integer,
    (1, *weight.shape) when all widths share it and (widths, *weight.shape) when each has its own. The code at
    width b is clip(floor(weight / step_b) + rounding + zero_b, 0, 2^b - 1).

    `fixed` names a width that the layer keeps whatever is selected (the first and the last layer).
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, widths: Sequence[int], fixed: int | None = None):
        super().__init__()
        self.fixed = fixed
        self.widths = [fixed] if fixed else sorted(set(widths) - {FP})
        weight = layer.weight.detach()
        # channels last, like the features: convolutions run faster on it
        layout = torch.channels_last if weight.dim() == 4 else torch.contiguous_format
        self.weight = nn.Parameter(weight.clone(memory_format=layout), requires_grad=False)
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone(), requires_grad=False)
        self.register_buffer("step", torch.ones(len(self.widths), len(self.weight)))
        self.register_buffer("zero_point", torch.zeros(len(self.widths), len(self.weight)))
        self.register_buffer("rounding", torch.zeros(1, *self.weight.shape, dtype=torch.int8))
        self.conv = convolution_of(layer)
        self.bits = FP
        self.relaxation: Relaxation | None = None  # set while the rounding is being learned
        self._weights: dict[int, Tensor] = {}  # the weight at each width used so far

    def forward(self, x: Tensor) -> Tensor:
        return run_layer(x, self.weight_at(self.bits), self.bias, self.conv)

    def set_bits(self, bits: int) -> None:
        """Select a width; FP for the floating-point weight. Nothing is recomputed."""
        bits = self.fixed if self.fixed and bits != FP else bits
        _require(bits, self.widths, "layer")
        self.bits = bits

    def weight_at(self, bits: int) -> Tensor:
        """The weight as the network sees it at `bits`, of the weight's shape; kept once computed."""
        if bits == FP:
            return self.weight
        if bits not in self._weights:
            index = self.widths.index(bits)
            step, zero = self._per_channel(self.step[index]), self._per_channel(self.zero_point[index])
            self._weights[bits] = dequantize(self.codes(bits).to(step.dtype), step, zero)
        return self._weights[bits]

    def prepared(self) -> Iterable[Tensor]:
        """The weights that are kept ready."""
        return self._weights.values()

    def forget(self) -> None:
        """Drop the weights that are kept ready."""
        self._weights.clear()

    def codes(self, bits: int) -> Tensor:
        """Integer codes 0 .. 2^bits - 1 of the weight, uint8, of the weight's shape."""
        index = self.widths.index(bits)
        step, zero = self._per_channel(self.step[index]), self._per_channel(self.zero_point[index])
        rounding = self.rounding[index if len(self.rounding) > 1 else 0]
        return torch.clamp(torch.floor(self.weight / step) + rounding + zero, 0, levels(bits)).to(torch.uint8)

    def search_steps(self, search: str) -> None:
        """Set the step size and zero point of every width by `search`, and round to nearest."""
        rows = self.weight.detach().flatten(1)  # (out, in * kh * kw)
        nearest = []
        for index, bits in enumerate(self.widths):
            self.step[index], self.zero_point[index] = SEARCHES[search](rows, bits)
            step = self._per_channel(self.step[index])
            # round to nearest is the one rounding that differs by width: ties to even, as torch.round
            nearest.append(torch.round(self.weight / step) - torch.floor(self.weight / step))
        self.set_rounding(torch.stack(nearest).to(torch.int8))

    def set_rounding(self, rounding: Tensor, steps: dict[int, Tensor] | None = None) -> None:
        """Take hard rounding values, integers, (1 or widths, *weight.shape), and learned step sizes, (out, 1, ...)."""
        self.rounding, self.relaxation = rounding, None
        for bits, step in (steps or {}).items():
            self.step[self.widths.index(bits)] = step.flatten()
        self._weights.clear()

    def steps(self) -> dict[int, Tensor]:
        """Step size of each width, (out, 1, ...)."""
        return {bits: self._per_channel(self.step[i]) for i, bits in enumerate(self.widths)}

    def zero_points(self) -> dict[int, Tensor]:
        """Zero point of each width, (out, 1, ...)."""
        return {bits: self._per_channel(self.zero_point[i]) for i, bits in enumerate(self.widths)}

    def soften(self, widths) -> None:
        """Refresh the soft weights at `widths` from the relaxation: once a step, before the forward passes."""
        wanted = {self.fixed} if self.fixed else set(widths) - {FP}
        self._weights.update(self.relaxation.soft(wanted))

    def _apply(self, *args, **kwargs):
        """Moved or cast: weights computed before belong to the old place."""
        self._weights.clear()
        return super()._apply(*args, **kwargs)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Take a saved rounding whether it is one for all widths or one a width; forget computed weights."""
        if f"{prefix}rounding" in state_dict:
            saved = state_dict[f"{prefix}rounding"]
            self.rounding = torch.empty_like(saved, device=self.rounding.device)
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._weights.clear()

    def _per_channel(self, values: Tensor) -> Tensor:
        """(out,) -> (out, 1, ...), to broadcast against the weight."""
        return values.view(-1, *[1] * (self.weight.dim() - 1))


@dataclass(frozen=True)
class Drop:
    """QDrop: while learning, an element stays quantized with probability `keep`, anew at every call.

    compiled: by torch.compile.
    """

    keep: float
    generator: torch.Generator
    compiled: bool = False


class ActivationQuantizer(nn.Module):
    """Fake quantization of an activation, per tensor and asymmetric, at the selected width.

    step: one parameter a width, (1,) each, keyed by bits (so that an optimizer leaves alone the widths that
    a step did not draw) · zero_point: (widths,), frozen.
    """

    def __init__(self, widths: Sequence[int], fixed: int | None = None):
        super().__init__()
        self.fixed = fixed
        self.widths = [fixed] if fixed else sorted(set(widths) - {FP})
        self.step = nn.ParameterDict({str(bits): nn.Parameter(torch.ones(1)) for bits in self.widths})
        self.register_buffer("zero_point", torch.zeros(len(self.widths)))
        self.bits = FP
        self.relu: Callable | None = None  # what it does to its input first, one of RELUS
        self.drop: Drop | None = None
        self._zero: dict[int, int] = {}  # zero points as Python numbers, so that a GPU need not be asked

    def forward(self, x: Tensor) -> Tensor:
        if self.bits == FP:
            return x if self.relu is None else self.relu(x)
        x = x.to(self.step[str(self.bits)].dtype)  # under autocast layers put out bfloat16, too coarse for 8 bits
        keep, drop = None, self.drop
        if drop is not None and drop.keep < 1:
            keep = draw_mask(x.numel(), drop.keep, drop.generator)
        compiled = drop is not None and drop.compiled
        grid = self.step[str(self.bits)], self._zero_at(self.bits), self.bits
        return fake_quantize_activation(x, *grid, keep, compiled=compiled, bounds=RELUS.get(self.relu))

    def set_bits(self, bits: int) -> None:
        """Select a width; FP passes the activation through."""
        bits = self.fixed if self.fixed and bits != FP else bits
        _require(bits, self.widths, "activation quantizer")
        self.bits = bits

    def search_steps(self, x: Tensor, search: str) -> None:
        """Set the step size and zero point of every width by `search` on the values of x, any shape."""
        values, count = histogram(x)
        for index, bits in enumerate(self.widths):
            step, zero = SEARCHES[search](values, bits, count)
            self.step[str(bits)].data.copy_(step)
            self.zero_point[index] = zero[0]
        self._zero.clear()

    def keep_steps_positive(self) -> None:
        """Undo an optimizer's step across zero."""
        for step in self.step.values():
            step.data.clamp_(min=SMALLEST_STEP)

    def _load_from_state_dict(self, *args):
        super()._load_from_state_dict(*args)
        self._zero.clear()

    def _zero_at(self, bits: int) -> int:
        if bits not in self._zero:
            self._zero[bits] = int(self.zero_point[self.widths.index(bits)])
        return self._zero[bits]
