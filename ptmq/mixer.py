"""Multi-bit Feature Mixer (MFM): what a block sees while it is reconstructed (PTMQ, figure 1).

f is the feature of the floating-point network; l, m and h are the features of the quantized network at the
width drawn from the low, the medium and the high group. All have one shape, and so has the result.
`first` is the element-wise mask, 1. where the first argument is taken, with probability 1/2.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

LAMBDAS = (0.4, 0.3, 0.3)  # weights of l, m and h
PROBABILITY = 0.5  # of the first argument of each mix


def weighted(l: Tensor, m: Tensor, h: Tensor, lambdas: Sequence[float] = LAMBDAS) -> Tensor:  # noqa: E741
    """λ1·l + λ2·m + λ3·h. A weight of 0 leaves its feature out, so (0, 0, 1) gives h to the last bit."""
    terms = [(feature, weight) for feature, weight in zip((l, m, h), lambdas, strict=True) if weight]
    mix = terms[0][0] if terms[0][1] == 1 else terms[0][0] * terms[0][1]
    for feature, weight in terms[1:]:
        mix = torch.add(mix, feature, alpha=weight)
    return mix


def choose(first: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """`a` where the mask `first` is 1., `b` where it is 0."""
    return torch.lerp(b, a, first)  # exact at 0 and 1


def case1(first: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """The FP feature mixed element-wise with the feature g of one group, drawn at random."""
    return choose(first, f, g)


def case2(first: Tensor, l: Tensor, m: Tensor, h: Tensor) -> Tensor:  # noqa: E741
    """H mixed with M by addition, replaced at random by L."""
    return choose(first, l, (h + m) / 2)


def case3(first: Tensor, f: Tensor, l: Tensor, m: Tensor, h: Tensor, lambdas=LAMBDAS) -> Tensor:  # noqa: E741
    """The FP feature mixed element-wise with the weighted sum of all three groups (the paper's best)."""
    return choose(first, f, weighted(l, m, h, lambdas))
