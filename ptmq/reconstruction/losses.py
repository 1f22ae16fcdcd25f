"""Reconstruction losses: the distance of two features, in one pass over main memory."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ptmq.quantization.tiles import dense, flat, laid_out_as, parts


def channel_axis(x: Tensor) -> int:
    """1 for a feature map (images, channels, height, width), -1 for tokens or a vector."""
    return 1 if x.dim() == 4 else -1


class _SquaredErrors(torch.autograd.Function):
    """Sum of weight · |a - b|^2 over pairs of tensors, and its gradients, each in one pass over main memory.

    terms: (weight, number of a, number of b) each, in the tensors that follow, which have one shape.
    """

    @staticmethod
    def forward(ctx: Any, terms: Sequence[tuple[float, int, int]], *given: Tensor) -> Tensor:
        first = dense(given[0])
        if any(tensor.shape != first.shape for tensor in given):  # what is read part by part would not notice
            raise ValueError(f"features must have one shape. Got {', '.join(str(tuple(t.shape)) for t in given)}.")
        tensors = [laid_out_as(tensor, first) for tensor in (first, *given[1:])]
        ctx.terms = terms
        ctx.save_for_backward(*tensors)
        total = first.new_zeros(())
        for where in parts(first):
            values = [flat(tensor)[where] for tensor in tensors]
            for weight, a, b in terms:
                difference = values[a] - values[b]
                total += weight * torch.dot(difference, difference)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grads = [torch.empty_like(tensor) if needed else None
                 for tensor, needed in zip(tensors, ctx.needs_input_grad[1:], strict=True)]  # fmt: skip
        own = [[(weight, b if a == number else a) for weight, a, b in ctx.terms if number in (a, b)]
               for number in range(len(tensors))]  # fmt: skip
        for where in parts(tensors[0]):
            values = [flat(tensor)[where] for tensor in tensors]
            for number, into in enumerate(grads):
                if into is not None:
                    pulls = ((values[number] - values[other]).mul_(2 * weight) for weight, other in own[number])
                    torch.mul(reduce(torch.Tensor.add_, pulls), grad, out=flat(into)[where])
        return None, *grads


def distances(*terms: tuple[float, Tensor, Tensor]) -> Tensor:
    """Σ weight · D(x, target) over (weight, x, target), where D is `distance` as it stands. A scalar."""
    tensors = {id(tensor): tensor for _, *pair in terms for tensor in pair}
    number = {key: i for i, key in enumerate(tensors)}
    numbered = [(weight, number[id(x)], number[id(target)]) for weight, x, target in terms]
    x = terms[0][1]
    return _SquaredErrors.apply(numbered, *tensors.values()) * (x.shape[channel_axis(x)] / x.numel())


def distance(x: Tensor, target: Tensor, power: float = 2.0, importance: Tensor | None = None) -> Tensor:
    """|x - target|^power summed over channels and averaged over the rest (BRECQ). A scalar.

    `importance`, of x's shape, weighs every element: BRECQ's Fisher diagonal is the squared gradient.
    """
    if power == 2 and importance is None:
        return distances((1.0, x, target))
    error = (x - target).abs().pow(power)
    if importance is not None:
        error = error * importance
    return error.sum() * (x.shape[channel_axis(x)] / x.numel())
