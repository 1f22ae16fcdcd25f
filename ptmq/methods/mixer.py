"""Multi-bit Feature Mixer (MFM): what a block sees while it is reconstructed (PTMQ, figure 1).

f is the feature of the floating-point network; `features` are those of the quantized network at the width drawn
from each bit group, lowest first: l, m and h in the paper. All have one shape, and so has the result.
`first` is the element-wise mask, 1. where the first argument is taken, with probability 1/2.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from ptmq.quantization.fake_quantization import choose

LAMBDAS = (0.4, 0.3, 0.3)  # weights of l, m and h
PROBABILITY = 0.5  # of the first argument of each mix


def weighted(features: Sequence[Tensor], lambdas: Sequence[float] = LAMBDAS) -> Tensor:
    """λ1·l + λ2·m + λ3·h. A weight of 0 leaves its feature out, so (0, 0, 1) gives h to the last bit."""
    terms = [(feature, weight) for feature, weight in zip(features, lambdas, strict=True) if weight]
    mix = terms[0][0] if terms[0][1] == 1 else terms[0][0] * terms[0][1]
    for feature, weight in terms[1:]:
        mix = torch.add(mix, feature, alpha=weight)
    return mix


def case1(first: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """The FP feature mixed element-wise with the feature g of one group, drawn at random."""
    return choose(first, f, g)


def case2(first: Tensor, features: Sequence[Tensor]) -> Tensor:
    """The higher groups mixed by addition (their mean), replaced at random by the lowest."""
    low, *higher = features
    return choose(first, low, reduce(torch.add, higher) / len(higher))


def case3(first: Tensor, f: Tensor, features: Sequence[Tensor], lambdas: Sequence[float] = LAMBDAS) -> Tensor:
    """The FP feature mixed element-wise with the weighted sum of all groups (the paper's best)."""
    return choose(first, f, weighted(features, lambdas))
