"""Adaptive rounding: learn for every weight whether it is rounded down or up.

The weight at b bits is  w_b = step_b * (clip(floor(w / step_b) + h(V) + zero_b, 0, 2^b - 1) - zero_b)
with one V for all widths (PTMQ) or for the only one (AdaRound, https://arxiv.org/abs/2004.10568).
While learning, h(V) is soft, in [0, 1]; afterwards it is the hard rounding value R = [V >= 0].
"""

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import cast

import torch
from torch import Tensor, nn

from ptmq.common.errors import one_of
from ptmq.quantization.fake_quantization import dequantize, largest_code

GAMMA, ZETA = -0.1, 1.1  # the stretch that lets h(V) reach 0 and 1 (AdaRound, eq. 23)
BINS = 20  # of the histogram of h(V)
INITIAL = ("lowest", "mean", "zero")


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clip((ZETA - GAMMA) * sigmoid(V) + GAMMA, 0, 1), elementwise (AdaRound, eq. 23)."""
    return torch.clamp((ZETA - GAMMA) * torch.sigmoid(v) + GAMMA, 0, 1)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V with h(V) = `h`, for h in [0, 1), elementwise."""
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1)


def fractional_part(weight: Tensor, step: Tensor) -> Tensor:
    """w / step - floor(w / step), in [0, 1): the h(V) at which the soft weight equals the weight."""
    scaled = weight / step
    return scaled - torch.floor(scaled)


def rounding_regularizer(h: Tensor, beta: float) -> Tensor:
    """Sum of 1 - |2h - 1|^beta: zero when every h is 0 or 1 (AdaRound, eq. 24). A scalar."""
    return (1 - (2 * h - 1).abs().pow(beta)).sum()


class Relaxation(nn.Module):
    """The learnable rounding of one layer.

    step_sizes: step size of each width, (out, 1, ...), from the search.
    """

    def __init__(self, step_sizes: dict[int, Tensor]):
        super().__init__()
        self._searched = step_sizes

    @property
    def step_sizes(self) -> dict[int, Tensor]:
        """What is stored when the learning is over: as searched, unless a subclass learns them."""
        return self._searched

    @property
    def learned_zero_points(self) -> dict[int, Tensor]:
        """Zero points that learning has moved, (out, 1, ...) each; as a rule none."""
        return {}

    def soft(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """The differentiable weights at `widths`, of the weight's shape each."""
        raise NotImplementedError

    def hard(self) -> Tensor:
        """What is added to floor(weight / step) + zero_point, an integer tensor: (1 or widths, *weight.shape)."""
        raise NotImplementedError

    def regularizer(self, beta: float) -> Tensor | float:
        """Pull towards hard rounding with the exponent `beta`, a scalar; 0 where a rounding needs none."""
        return 0.0

    def histogram(self) -> Tensor | None:
        """How many soft rounding values lie in each BINS-th of [0, 1], (BINS,); None where there is no such value."""
        return None


class AdaptiveRounding(Relaxation):
    """One V for a layer's weight, shared by all its weight widths.

    weight: (out, ...) · step_sizes, zero_points: one tensor a width, (out, 1, ...) each, keyed by bits ·
    initial: V from the fractional part at the lowest width, from its mean over the widths, or zero
    (h = 1/2 everywhere) · floors: the codes rounded down, one tensor a width, where they are not those of the weight.
    """

    def __init__(
        self,
        weight: Tensor,
        step_sizes: dict[int, Tensor],
        zero_points: dict[int, Tensor],
        initial: str,
        floors: dict[int, Tensor] | None = None,
    ):
        super().__init__(step_sizes)
        one_of("initial V", initial, INITIAL)
        self.zero_points = zero_points
        # floor(w / step) + zero_point does not change while V is learned: once, before the loop.
        self.floors = floors or {b: torch.floor(weight / step) + zero_points[b] for b, step in step_sizes.items()}
        if initial == "zero":
            v = torch.zeros_like(weight)
        else:
            widths = sorted(step_sizes) if initial == "mean" else [min(step_sizes)]
            fractions = (
                fractional_part(weight, step_sizes[b])
                if floors is None
                else torch.clamp(weight / step_sizes[b] + zero_points[b] - floors[b], 0, 1)
                for b in widths
            )
            v = inverse_rectified_sigmoid(reduce(torch.add, fractions) / len(widths))
        self.v = nn.Parameter(v)

    def soft(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """The differentiable weights at `widths`, sharing one evaluation of h(V)."""
        h = rectified_sigmoid(self.v)
        return {
            bits: dequantize(
                torch.clamp(self.floors[bits] + h, 0, largest_code(bits)), self.step_sizes[bits], self.zero_points[bits]
            )
            for bits in widths
        }

    def regularizer(self, beta: float) -> Tensor:
        """Pull of V towards 0 or 1, a scalar."""
        return rounding_regularizer(rectified_sigmoid(self.v), beta)

    def hard(self) -> Tensor:
        """R in {0, 1}, int8, with a leading axis of length 1: one R for all widths, (1, *weight.shape)."""
        return (self.v.detach() >= 0).to(torch.int8).unsqueeze(0)

    def histogram(self) -> Tensor:
        """Of h(V)."""
        return torch.histc(rectified_sigmoid(self.v.detach()), BINS, 0, 1)


class RoundingPerWidth(Relaxation):
    """One V for every width of `step_sizes`, learned side by side. Arguments as for AdaptiveRounding."""

    def __init__(
        self,
        weight: Tensor,
        step_sizes: dict[int, Tensor],
        zero_points: dict[int, Tensor],
        initial: str,
        floors: dict[int, Tensor] | None = None,
    ):
        super().__init__(step_sizes)
        each = {
            str(b): AdaptiveRounding(
                weight, {b: step_sizes[b]}, {b: zero_points[b]}, initial, floors and {b: floors[b]}
            )
            for b in sorted(step_sizes)
        }
        self.each = cast(Mapping[str, AdaptiveRounding], nn.ModuleDict(each))  # torch knows its values as modules only
        self._last: list[int] = []  # the widths of this iteration: V of the others stays where it is

    def soft(self, widths: Iterable[int]) -> dict[int, Tensor]:
        """The differentiable weights at `widths`, each from its own V."""
        self._last = [bits for bits in widths if bits in self.step_sizes]
        return {bits: self.each[str(bits)].soft([bits])[bits] for bits in self._last}

    def regularizer(self, beta: float) -> Tensor | float:
        """Pull towards 0 or 1 of every V that this iteration uses, a scalar."""
        return sum(self.each[str(bits)].regularizer(beta) for bits in self._last)

    def hard(self) -> Tensor:
        """R in {0, 1}, int8, (widths, *weight.shape)."""
        return torch.cat([rounding.hard() for rounding in self.each.values()])

    def histogram(self) -> Tensor:
        """Of h(V), all widths together."""
        return reduce(torch.add, (rounding.histogram() for rounding in self.each.values()))
