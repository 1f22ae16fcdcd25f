"""Uniform affine fake quantization: pure functions of tensors, with the LSQ gradient for activations.

A value x is stored as the code  q = clip(round(x / step) + zero_point, 0, 2^bits - 1)
and read back as                 (q - zero_point) * step.

LSQ: https://arxiv.org/abs/1902.08153. QDrop's element-wise dropping: https://arxiv.org/abs/2203.05740.
"""

import torch
from torch import Tensor


def levels(bits: int) -> int:
    """Largest code of an unsigned `bits`-wide grid."""
    return 2**bits - 1


def quantize(x: Tensor, step: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    """Codes of `x` on the grid, a float tensor of x's shape holding integers 0 .. 2^bits - 1.

    `step` and `zero_point` broadcast against x: scalars per tensor, or (channels, 1, ...) per channel.
    """
    return torch.clamp(torch.round(x / step) + zero_point, 0, levels(bits))


def dequantize(codes: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
    """Real values of `codes`; the inverse of `quantize` on the grid."""
    return (codes - zero_point) * step


def keep_mask(like: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """Element-wise Bernoulli mask of 0. and 1. with the shape, memory layout and device of `like`.

    One random byte decides one element, so `probability` has a resolution of 1/256. Drawing eight bytes
    at a time is many times faster on a CPU than one Bernoulli draw an element.
    """
    count = like.numel()
    words = torch.empty((count + 7) // 8, dtype=torch.int64, device=like.device)
    words.random_(-(2**63), None, generator=generator)
    mask = words.view(torch.uint8)[:count].to(like.dtype).lt_(round(probability * 256))
    # the layout of `like` without its holes, if it is a part of a larger tensor
    return mask.as_strided(like.shape, torch.empty_like(like, device="meta").stride())


class _FakeQuantizeActivation(torch.autograd.Function):
    """Forward and analytic backward of `fake_quantize_activation`; few passes over memory."""

    @staticmethod
    def forward(ctx, x, step, zero_point, bits, keep, grad_scale):
        low, high = -zero_point, levels(bits) - zero_point
        out = (x / step).round_().clamp_(low, high).mul_(step)
        if keep is not None:
            out = torch.lerp(x, out, keep)  # exact at 0 and 1
        ctx.save_for_backward(x, step, out, keep)
        ctx.range, ctx.grad_scale = (low, high), grad_scale
        return out

    @staticmethod
    def backward(ctx, grad):
        x, step, out, keep = ctx.saved_tensors
        low, high = ctx.range
        # The gradient passes where the code did not saturate: low - 1/2 < x / step < high + 1/2.
        grad_x = torch.ops.aten.hardtanh_backward(grad, x / step, low - 0.5, high + 0.5)
        if keep is not None:
            grad_x = torch.lerp(grad, grad_x, keep)
        # LSQ: d out / d step is (code - x/step) inside the range and the clipped code outside; both are
        # (out - inside * x) / step, and a dropped element, where out = x, adds nothing.
        grad_step = ((grad * out).sum() - (grad_x * x).sum()) / step * ctx.grad_scale
        return grad_x, grad_step.reshape(step.shape), None, None, None, None


def fake_quantize_activation(
    x: Tensor, step: Tensor, zero_point: int, bits: int, keep: Tensor | None = None, grad_scale: float | None = None
) -> Tensor:
    """Fake-quantize an activation per tensor, straight through, with the LSQ gradient of the step size.

    x: any shape · step: one element · zero_point: a code, 0 .. 2^bits - 1 · keep: None, or a mask of x's shape
    that holds 1. where the element is quantized and 0. where it stays as it is (QDrop) · grad_scale: the factor
    on the step's gradient, by default LSQ's 1 / sqrt(numel * (2^bits - 1)). Returns a tensor of x's shape.
    """
    if grad_scale is None:
        grad_scale = (x.numel() * levels(bits)) ** -0.5
    return _FakeQuantizeActivation.apply(x, step, zero_point, bits, keep, grad_scale)
