"""PTMQ's Group-wise Distillation Loss (GD-Loss).

f is the block's floating-point output; `outputs` are its outputs at the width drawn from each bit group, lowest
first: l, m and h in the paper.
"""

from collections.abc import Sequence

from torch import Tensor

from ptmq.methods.mixer import LAMBDAS, weighted
from ptmq.reconstruction.losses import distances


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
    taught = zip(gammas[1:], reversed(students), strict=True)
    return distances(
        (gammas[0], weighted(outputs, lambdas), f), *((gamma, student, teacher) for gamma, student in taught)
    )


def gd_later(f: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """D(h, f) + Σ ½·D(x, h) + ½·D(x, f) over x = m, l, with h a fixed teacher (the authors' later code). A scalar."""
    *students, high = outputs
    teacher = high.detach()
    return distances((1.0, high, f), *((0.5, x, target) for x in reversed(students) for target in (teacher, f)))


def gd_none(f: Tensor, outputs: Sequence[Tensor]) -> Tensor:
    """D(l, f) + D(m, f) + D(h, f): every group follows the floating-point block, no distillation. A scalar."""
    return distances(*((1.0, output, f) for output in outputs))
