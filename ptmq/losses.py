"""Reconstruction losses: the distance of two features, and PTMQ's Group-wise Distillation Loss (GD-Loss).

f is the block's floating-point output; `outputs` are its outputs at the width drawn from each bit group, lowest
first: l, m and h in the paper.
"""

from collections.abc import Sequence

from torch import Tensor

from ptmq.mixer import LAMBDAS, weighted


def channel_axis(x: Tensor) -> int:
    """1 for a feature map (images, channels, height, width), -1 for tokens or a vector."""
    return 1 if x.dim() == 4 else -1


def distance(x: Tensor, target: Tensor, power: float = 2.0, importance: Tensor | None = None) -> Tensor:
    """|x - target|^power summed over channels and averaged over the rest (BRECQ). A scalar.

    `importance`, of x's shape, weighs every element: BRECQ's Fisher diagonal is the squared gradient.
    """
    error = (x - target).square() if power == 2 else (x - target).abs().pow(power)
    if importance is not None:
        error = error * importance
    return error.sum() / (error.numel() / error.shape[channel_axis(error)])


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
