"""Elementwise work on large tensors, part by part.

A chain of operations on a whole feature map fetches it from main memory at every one of them. On parts that fit into a
CPU's cache the chain fetches it once. On a GPU the part is the whole, because there every operation costs a launch.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

PART = 2**17  # elements: half a megabyte, of which a few fit into the cache of a core


def dense(x: Tensor) -> Tensor:
    """x without holes in memory; itself where it has none."""
    layout = torch.empty_like(x, device="meta").stride()
    return x if layout == x.stride() else torch.empty_like(x).copy_(x)


def laid_out_as(x: Tensor, like: Tensor) -> Tensor:
    """x in the memory layout of the dense tensor `like`, which has its shape."""
    return x if x.stride() == like.stride() else torch.empty_like(like).copy_(x)


def flat(x: Tensor) -> Tensor:
    """The elements of a dense tensor in the order in which they lie in memory, (count,)."""
    return x.as_strided((x.numel(),), (1,))


def parts(x: Tensor) -> Iterator[slice]:
    """Slices that together cover the elements of x."""
    size = PART if x.device.type == "cpu" else max(x.numel(), 1)
    return (slice(start, start + size) for start in range(0, x.numel(), size))
