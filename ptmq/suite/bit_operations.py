"""Bit operations: multiplications of a network, each weighted with the bits of its two operands."""

import torch
from torch import Tensor

from ptmq.common.bits import FP
from ptmq.network.model import MultiBitModel

IMAGE_BITS = 8  # of the pixels that the first layer sees


@torch.no_grad()
def bit_operations(model: MultiBitModel, image: Tensor) -> int:
    """Sum over the layers of multiplications x weight bits x bits of the input, at the widths that are selected.

    image: (1, ...), of which only the size matters. A layer's input has the bits of the quantizer that gave it or,
    where it was pooled or reshaped since, of the one that ran last; floating point where none ran.
    """
    given = {image.data_ptr(): (IMAGE_BITS, image)}  # outputs are kept, so that no other takes their place in memory
    last, found = FP, 0

    def remember(quantizer, args, out: Tensor) -> None:
        nonlocal last
        last = quantizer.bits
        given[out.data_ptr()] = (last, out)

    def count(layer, args, out: Tensor) -> None:
        nonlocal found
        bits, _ = given.get(args[0].data_ptr(), (last, None))
        found += out[0].numel() * layer.weight[0].numel() * layer.bits * bits

    hooks = [quantizer.register_forward_hook(remember) for quantizer in model.quantizers]
    hooks += [layer.register_forward_hook(count) for layer in model.layers]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found
