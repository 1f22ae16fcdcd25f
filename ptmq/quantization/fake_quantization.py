"""Uniform affine fake quantization: pure functions of tensors, with the LSQ gradient for activations.

A value x is stored as the code  q = clip(round(x / step) + zero_point, 0, 2^bits - 1)
and read back as                 (q - zero_point) * step.

LSQ: https://arxiv.org/abs/1902.08153. QDrop's element-wise dropping: https://arxiv.org/abs/2203.05740.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ptmq.quantization.tiles import dense, flat, laid_out_as, parts

SLACK = 2.0**-22  # of a code: what lies half way between two is moved further by float32's rounding errors
Bounds = tuple[float, float]


def largest_code(bits: int) -> int:
    """Largest code of an unsigned `bits`-wide grid."""
    return 2**bits - 1


def quantize(x: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Codes of `x` on the grid, a float tensor of x's shape holding integers 0 .. 2^bits - 1.

    `step` and `zero_point` broadcast against x: scalars per tensor, or (channels, 1, ...) per channel.
    """
    return torch.clamp(torch.round(x / step) + zero_point, 0, largest_code(bits))


def dequantize(codes: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of `codes`; the inverse of `quantize` on the grid."""
    return (codes - zero_point) * step


@dataclass(frozen=True)
class KeepMask:
    """Which elements of a tensor stay quantized: those whose byte is below `threshold` (QDrop).

    bytes: uint8, one an element, (count,), in the order in which the elements lie in memory.
    """

    bytes: Tensor
    threshold: int

    def like(self, x: Tensor) -> Tensor:
        """1. where an element stays quantized and 0. where not, with the shape and layout of the dense tensor `x`."""
        return _kept(self.bytes, self.threshold, x.dtype).as_strided(x.shape, x.stride())


def _kept(random: Tensor, threshold: int, dtype: torch.dtype) -> Tensor:
    return random.to(dtype).lt_(threshold)


def draw_mask(count: int, probability: float, generator: torch.Generator) -> KeepMask:
    """A mask of `count` elements on the generator's device, each kept with `probability`.

    One random byte decides one element, so `probability` has a resolution of 1/256. Drawing eight bytes
    at a time is many times faster on a CPU than one Bernoulli draw an element.
    """
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=generator.device)
    words.random_(-(2**63), None, generator=generator)
    return KeepMask(words.view(torch.uint8)[:count], round(probability * 256))


def keep_mask(like: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Element-wise Bernoulli mask of 0. and 1. with the shape and memory layout of `like`, see `draw_mask`."""
    return draw_mask(like.numel(), probability, generator).like(torch.empty_like(like, device="meta"))


def choose(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where the mask `first` is 1., `b` where it is 0."""
    return torch.lerp(b, a, first)  # exact at 0 and 1


def _quantize(
    x: Tensor, step: Tensor, low: int, high: int, bounds: Bounds | None, random: Tensor | None, threshold: int,
    out: Tensor,
) -> None:  # fmt: skip
    """Write the elements x, kept within the bounds, into `out`: on the grid where a random byte is below the threshold,
    else as they are.
    """
    if bounds is not None:
        x = x.clamp(*bounds)
    torch.div(x, step, out=out).round_().clamp_(low, high).mul_(step)
    if random is not None:
        torch.lerp(x, out, _kept(random, threshold, x.dtype), out=out)  # exact at 0 and 1


def _differentiate(
    x: Tensor, step: Tensor, half: float, bounds: Bounds | None, out: Tensor, grad: Tensor, grad_x: Tensor
) -> Tensor:
    """Write into `grad_x` the gradient of the elements x; returns that of the step size times the step size."""
    given, x = x, x if bounds is None else x.clamp(*bounds)
    backward = torch.ops.aten.hardtanh_backward.grad_input
    # The gradient passes where the code did not saturate, so that x moved by half a step at most, and where x was
    # dropped, so that it did not move.
    moved = out - x
    backward(grad, moved / step, -half, half, grad_input=grad_x)
    # LSQ: d out / d step is (code - x/step) inside the range and the clipped code outside; both are
    # (out - inside * x) / step, and a dropped element, where out = x, adds nothing. Summed as (out - x) + (x outside):
    # the difference of the sums of out and of x would leave their rounding errors.
    grad_step = torch.dot(grad, moved) + torch.dot(grad - grad_x, x)
    if bounds is not None:
        backward(grad_x, given, *bounds, grad_input=grad_x)
    return grad_step


@cache
def _compiled(kernel: Callable) -> Callable:
    """The kernel as one loop over all elements."""
    return torch.compile(kernel, dynamic=True)


class _FakeQuantizeActivation(torch.autograd.Function):
    """Forward and analytic backward of `fake_quantize_activation`; on a CPU each fetches its operands once."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, zero_point: int, bits: int, bounds: Bounds | None, keep: KeepMask | None,
        grad_scale: float, compiled: bool,
    ) -> Tensor:  # fmt: skip
        x = dense(x)
        ctx.bounds, ctx.grad_scale, ctx.compiled = bounds, grad_scale, compiled
        out, grid = torch.empty_like(x), (-zero_point, largest_code(bits) - zero_point)
        ctx.half = 0.5 + SLACK * max(256, *map(abs, grid))  # of a step
        kernel = _compiled(_quantize) if compiled else _quantize
        for where in _parts(ctx, x):
            random, threshold = (None, 0) if keep is None else (keep.bytes[where], keep.threshold)
            kernel(flat(x)[where], step, *grid, bounds, random, threshold, flat(out)[where])
        ctx.save_for_backward(x, step, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, out = ctx.saved_tensors
        grad, grad_x, grad_step = laid_out_as(grad, x), torch.empty_like(x), torch.zeros_like(step)
        kernel = _compiled(_differentiate) if ctx.compiled else _differentiate
        for where in _parts(ctx, x):
            values = (flat(t)[where] for t in (out, grad, grad_x))
            grad_step += kernel(flat(x)[where], step, ctx.half, ctx.bounds, *values)
        return grad_x, grad_step / step * ctx.grad_scale, *[None] * 6


def _parts(ctx: Any, x: Tensor) -> Iterable[slice]:
    """What a kernel works on at a time: a compiled one goes through all elements in one loop."""
    return [slice(None)] if ctx.compiled else parts(x)


def fake_quantize_activation(
    x: Tensor,
    step: Tensor,
    zero_point: int,
    bits: int,
    keep: KeepMask | None = None,
    grad_scale: float | None = None,
    compiled: bool = False,
    bounds: Bounds | None = None,
) -> Tensor:
    """Fake-quantize an activation per tensor, straight through, with the LSQ gradient of the step size.

    x: any shape · step: one element, (1,) · zero_point: a code, 0 .. 2^bits - 1 · keep: which elements are quantized
    while the others stay as they are (QDrop); None for all · grad_scale: the factor on the step's gradient, by default
    LSQ's 1 / sqrt(numel * (2^bits - 1)) · compiled: by torch.compile · bounds: what x is kept within before, such as a
    ReLU's 0 and infinity, with the gradient of that. Returns a tensor of x's shape.
    """
    if grad_scale is None:
        grad_scale = (max(x.numel(), 1) * largest_code(bits)) ** -0.5
    return _FakeQuantizeActivation.apply(x, step, zero_point, bits, bounds, keep, grad_scale, compiled)
