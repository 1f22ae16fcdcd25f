"""Features: what enters and leaves a unit for all calibration images, streamed from unit to unit.

They stay where the images are: on the model's device, or in main memory, from where each batch is taken to the model.
"""

from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.network.model import Unit

INFERENCE_BATCH = 128
ERROR_IMAGES = 256  # images on which the error before and after learning is measured


@dataclass
class Features:
    """A unit's input and target for all calibration images, (images, ...) each.

    fp, quantized: the input in floating point and at every width · target: the unit's FP output.
    """

    fp: Tensor
    quantized: dict[BitWidth, Tensor]
    target: Tensor


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last for feature maps: convolutions run faster on it."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of x in x's memory format, (len(index), ...)."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def joined(batches: list[Tensor]) -> Tensor:
    """Batches as one tensor in its memory format."""
    whole = torch.cat(batches)
    return whole.contiguous(memory_format=memory_format(whole))


@torch.no_grad()
def propagate(unit: Unit, x: Tensor, width: BitWidth) -> Tensor:
    """The unit's output at `width` for all images of x, in inference."""
    unit.set_bits(width)
    return joined([unit(batch.to(unit.device)).to(x.device) for batch in x.split(INFERENCE_BATCH)])


def propagate_all(unit: Unit, quantized: MutableMapping[BitWidth, Tensor]) -> None:
    """Put the unit's output at every width in the place of that width's input: one more copy at a time, not all."""
    for width, x in quantized.items():
        quantized[width] = propagate(unit, x, width)


def entering(unit: Unit, part: Unit, x: Tensor, width: BitWidth) -> Tensor:
    """What enters a layer of the unit at `width`, for all images of x that enter the unit."""
    seen: list[Tensor] = []
    hook = part.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].to(x.device)))
    propagate(unit, x, width)
    hook.remove()
    return joined(seen)


def part_features(unit: Unit, part: Unit, whole: Features) -> Features:
    """The features of a part of the unit, from those of the whole unit."""
    if part is unit:
        return whole
    fp = entering(unit, part, whole.fp, FULL_PRECISION)
    quantized = {width: entering(unit, part, x, width) for width, x in whole.quantized.items()}
    return Features(fp, quantized, propagate(part, fp, FULL_PRECISION))


def reconstruction_error(unit: Unit, features: Features) -> dict[str, float]:
    """The unit's error at every width on the first ERROR_IMAGES images, {'W3A3': mean square}."""
    few = features.target[:ERROR_IMAGES]
    outputs = ((width, propagate(unit, x[:ERROR_IMAGES], width)) for width, x in features.quantized.items())
    return {str(width): float((out - few).square().mean()) for width, out in outputs}
