"""Reconstruction losses: the distance of two features, and PTMQ's Group-wise Distillation Loss (GD-Loss).

f is the block's floating-point output; `outputs` are its outputs at the width drawn from each bit group, lowest
first: l, m and h in the paper.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ptmq.blocked import dense, flat, laid_out_as, parts
from ptmq.mixer import LAMBDAS, weighted


def channel_axis(x: Tensor) -> int:
    """1 for a feature map (images, channels, height, width), -1 for tokens or a vector."""
    return 1 if x.dim() == 4 else -1


class _SquaredError(torch.autograd.Function):
    """Sum of (x - target)^2 in one pass over main memory, and its gradients."""

    @staticmethod
    def forward(ctx, x, target):
        x = dense(x)
        target = laid_out_as(target, x)
        ctx.save_for_backward(x, target)
        a, b, total = flat(x), flat(target), x.new_zeros(())
        for where in parts(x):
            difference = a[where] - b[where]
            total += torch.dot(difference, difference)
        return total

    @staticmethod
    def backward(ctx, grad):
        x, target = ctx.saved_tensors
        grad_x = torch.empty_like(x)
        a, b, out = flat(x), flat(target), flat(grad_x)
        for where in parts(x):
            torch.sub(a[where], b[where], out=out[where]).mul_(2 * grad)
        return grad_x, -grad_x if ctx.needs_input_grad[1] else None


def distance(x: Tensor, target: Tensor, power: float = 2.0, importance: Tensor | None = None) -> Tensor:
    """|x - target|^power summed over channels and averaged over the rest (BRECQ). A scalar.

    `importance`, of x's shape, weighs every element: BRECQ's Fisher diagonal is the squared gradient.
    """
    positions = x.numel() / x.shape[channel_axis(x)]
    if power == 2 and importance is None:
        return _SquaredError.apply(x, target) / positions
    error = (x - target).abs().pow(power)
    if importance is not None:
        error = error * importance
    return error.sum() / positions


def gd_figure1(
    f: Tensor,
    outputs: Sequence[Tensor],
    lambdas: Sequence[float] = LAMBDAS,
    gammas: Sequence[float] = (1.0, 1.0, 1.0),
    detach: bool = True,
) -> Tensor:
    """γ1·D(f, λ1·l + λ2·m + λ3·h) + γ2·D(m, h) + γ3·D(l, h) (PTMQ, figure 1). A scalar.

    The floating-point block teaches the mix, the high group teaches the others; `detach` stops the gradient
    at that teacher.
    """
    *students, high = outputs
    teacher = high.detach() if detach else high
    loss = gammas[0] * distance(weighted(outputs, lambdas), f)
    for student, gamma in zip(reversed(students), gammas[1:], strict=True):
        loss = loss + gamma * distance(student, teacher)
    return loss


def gd_later(f: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """D(h, f) + Σ ½·D(x, h) + ½·D(x, f) over x = m, l, with h a fixed teacher (the authors' later code). A scalar."""
    *students, high = outputs
    loss = distance(high, f)
    for student in reversed(students):
        loss = loss + 0.5 * distance(student, high.detach()) + 0.5 * distance(student, f)
    return loss


def gd_none(f: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """D(l, f) + D(m, f) + D(h, f): every group follows the floating-point block, no distillation. A scalar."""
    return sum(distance(output, f) for output in outputs)
