"""Features: what enters and leaves a unit for all calibration images, streamed from unit to unit.

They stay where the images are: on the model's device, or in main memory, from where each batch is taken to the model.
"""

from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ptmq.common.bits import FP, FULL_PRECISION, BitWidth
from ptmq.common.device import images_at_a_time, joined
from ptmq.network.model import Unit

INFERENCE_BATCH = 128  # images that pass a unit at a time, fewer where they are large
ERROR_IMAGES = 256  # images on which the error before and after learning is measured


@dataclass(frozen=True)
class Codes:
    """A feature that lies on a grid, as its codes: a quarter of the memory, and the same values.

    codes: uint8, (images, ...) · step: (1,).
    """

    codes: Tensor
    step: Tensor
    zero_point: int

    def values(self) -> Tensor:
        """The feature, of the codes' shape and layout."""
        return self.codes.to(self.step.dtype).sub_(self.zero_point).mul_(self.step)

    @property
    def device(self) -> torch.device:
        """Where the codes lie."""
        return self.codes.device

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, images: slice) -> "Codes":
        return replace(self, codes=self.codes[images])


Feature = Tensor | Codes  # for all calibration images


@dataclass
class Features:
    """A unit's input and target for all calibration images, (images, ...) each.

    fp, quantized: the input in floating point and at every width · target: the unit's FP output.
    """

    fp: Tensor
    quantized: Mapping[BitWidth, Feature]
    target: Tensor


def values(x: Feature) -> Tensor:
    """The feature as a tensor."""
    return x.values() if isinstance(x, Codes) else x


def take(x: Feature, index: Tensor) -> Tensor:
    """Rows `index` of x in x's memory format, (len(index), ...)."""
    if isinstance(x, Codes):
        return replace(x, codes=take(x.codes, index)).values()
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def batch_size(x: Feature) -> int:
    """How many images of a feature pass a unit at a time in inference."""
    return images_at_a_time((x.codes if isinstance(x, Codes) else x).shape[1:], INFERENCE_BATCH)


def batches(x: Feature) -> Iterator[Tensor]:
    """The feature batch by batch."""
    size = batch_size(x)
    return (values(x[start : start + size]) for start in range(0, len(x), size))


@torch.no_grad()
def propagate(unit: Unit, x: Feature, width: BitWidth) -> Tensor:
    """The unit's output at `width` for all images of x, in inference."""
    unit.set_bits(width)
    return joined((unit(batch.to(unit.device)).to(batch.device) for batch in batches(x)), len(x))


@torch.no_grad()
def coded(unit: Unit, x: Feature, width: BitWidth) -> Feature:
    """The unit's output at `width` as `propagate` gives it; as codes where a quantizer puts it out."""
    unit.set_bits(width)
    quantizer = unit.output_quantizer
    if quantizer is None or quantizer.bits == FP:
        return propagate(unit, x, width)
    step, zero_point = quantizer.grid()
    step = step.detach().clone()

    def codes(batch: Tensor) -> Tensor:
        out = unit(batch.to(unit.device))
        return (out / step).round_().add_(zero_point).to(torch.uint8).to(batch.device)

    whole = joined(map(codes, batches(x)), len(x))
    return Codes(whole, step.to(whole.device), zero_point)


def propagate_all(unit: Unit, quantized: MutableMapping[BitWidth, Feature]) -> None:
    """Put the unit's output at every width in the place of that width's input: one more copy at a time, not all."""
    for width, x in quantized.items():
        quantized[width] = coded(unit, x, width)


def entering(unit: Unit, part: Unit, x: Feature, width: BitWidth) -> Tensor:
    """What enters a layer of the unit at `width`, for all images of x that enter the unit."""
    seen: list[Tensor] = []
    hook = part.layers[0].register_forward_pre_hook(lambda layer, args: seen.append(args[0].to(x.device)))
    propagate(unit, x, width)
    hook.remove()
    return joined(seen, len(x))


def part_features(unit: Unit, part: Unit, whole: Features) -> Features:
    """The features of a part of the unit, from those of the whole unit."""
    if part is unit:
        return whole
    fp = entering(unit, part, whole.fp, FULL_PRECISION)
    quantized = {width: entering(unit, part, x, width) for width, x in whole.quantized.items()}
    return Features(fp, quantized, propagate(part, fp, FULL_PRECISION))


@torch.no_grad()
def _error_at(unit: Unit, x: Feature, target: Tensor, width: BitWidth) -> float:
    """The mean square of the unit's output at `width` minus the target, for all images of x."""
    unit.set_bits(width)
    parts = zip(batches(x), target.split(batch_size(x)), strict=True)
    squares = ((unit(batch.to(unit.device)).to(part.device) - part).square() for batch, part in parts)
    return sum(float(each.sum(dtype=torch.float64)) for each in squares) / target.numel()


def reconstruction_error(unit: Unit, features: Features) -> dict[str, float]:
    """The unit's error at every width on the first ERROR_IMAGES images, {'W3A3': mean square}."""
    few = features.target[:ERROR_IMAGES]
    return {str(width): _error_at(unit, x[:ERROR_IMAGES], few, width) for width, x in features.quantized.items()}
