"""The reconstruction engine: one loop for every method that learns rounding block by block.

Features stream forward: what block k puts out, in floating point and at every width, is what block k + 1
gets, so the cost of a calibration is linear in depth. Every unit has random generators of its own, seeded by
(seed, unit): a run that continues after a checkpoint draws what an uninterrupted run would have drawn.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ptmq.bits import FULL_PRECISION, BitWidth
from ptmq.errors import InputError
from ptmq.files import load_tensors, save_tensors
from ptmq.graph import HEAD, STEM
from ptmq.layers import Drop, QuantizedLayer
from ptmq.losses import distance
from ptmq.multibit import MultiBitModel, Unit
from ptmq.settings import ReconstructionSettings

INFERENCE_BATCH = 128
ERROR_IMAGES = 256  # images on which the error before and after learning is measured
CURVE_POINTS = 20  # of the loss, kept in the record of a unit


class RoundingMethod(Protocol):
    """What is particular to a method; everything else is the engine's."""

    settings: ReconstructionSettings
    widths: Sequence[BitWidth]  # the widths whose features are streamed

    def relax(self, layer: QuantizedLayer) -> nn.Module:
        """The learnable rounding of a layer: parameters, soft(widths), regularizer(beta), hard()."""

    def draw(self, generator: torch.Generator) -> Sequence[BitWidth]:
        """The widths at which this step runs the block."""

    def mix(self, fp: Tensor, quantized: Sequence[Tensor], generator: torch.Generator) -> Sequence[Tensor]:
        """The block's input for each drawn width, from the FP feature and the features at those widths."""

    def loss(self, target: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The block's loss from its FP output and its outputs at the drawn widths."""


@dataclass
class Random:
    """The generators of one unit: `host` draws batches and widths, `device` draws masks."""

    seed: int
    unit: int
    on: torch.device
    host: torch.Generator = field(init=False)
    device: torch.Generator = field(init=False)

    def __post_init__(self):
        number = self.seed * 100_003 + self.unit * 2
        self.host = torch.Generator().manual_seed(number)
        self.device = torch.Generator(self.on).manual_seed(number + 1)


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last for feature maps: convolutions run faster on it."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


@torch.no_grad()
def propagate(unit: Unit, x: Tensor, width: BitWidth) -> Tensor:
    """The unit's output at `width` for all images of x, in inference."""
    unit.set_bits(width)
    out = torch.cat([unit(batch) for batch in x.split(INFERENCE_BATCH)])
    return out.contiguous(memory_format=memory_format(out))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` of x in x's memory format, (len(index), ...)."""
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).index_select(0, index).permute(0, 3, 1, 2)
    return x.index_select(0, index)


def beta_at(step: int, settings: ReconstructionSettings) -> float | None:
    """The regularizer's exponent at a step counted from 1; None during warm-up. Linear (BRECQ, QDrop)."""
    start = settings.warmup * settings.steps
    if step < start:
        return None
    left = max(0.0, 1 - (step - start) / (settings.steps - start))
    return settings.beta_end + (settings.beta_start - settings.beta_end) * left


def errors(unit: Unit, features: dict[BitWidth, Tensor], target: Tensor) -> dict[str, float]:
    """Reconstruction error of the unit at every width on its own input, {'W3A3': mean squared error}."""
    few = target[:ERROR_IMAGES]
    return {
        str(width): float((propagate(unit, x[:ERROR_IMAGES], width) - few).square().mean())
        for width, x in features.items()
    }


def learn(
    unit: Unit,
    method: RoundingMethod,
    fp: Tensor,
    features: dict[BitWidth, Tensor],
    target: Tensor,
    random: Random,
    progress: Callable[[str, int, float], None],
) -> list[float]:
    """Learn one unit's rounding and activation step sizes; afterwards its rounding is hard.

    fp, features: the unit's input in floating point and at every width, (images, ...) · target: its FP
    output. Returns the loss at CURVE_POINTS steps.
    """
    settings = method.settings
    for layer in unit.layers:
        layer.relaxation = method.relax(layer)
    for quantizer in unit.quantizers:
        quantizer.drop = Drop(settings.keep, random.device)
    roundings = [p for layer in unit.layers for p in layer.relaxation.parameters()]
    steps = [p for quantizer in unit.quantizers for p in quantizer.step.parameters()]
    groups = [{"params": roundings, "lr": settings.lr_rounding}, {"params": steps, "lr": settings.lr_step_size}]
    optimizer = torch.optim.Adam([group for group in groups if group["params"]])
    at_edge = unit.name in (STEM, HEAD)
    curve = []

    for step in range(1, settings.steps + 1):
        index = torch.randint(len(fp), (settings.batch_size,), generator=random.host).to(fp.device)
        drawn = method.draw(random.host)
        for layer in unit.layers:
            layer.soften(width.weight for width in drawn)
        inputs = method.mix(take(fp, index), [take(features[width], index) for width in drawn], random.device)
        outputs = []
        for width, x in zip(drawn, inputs, strict=True):
            unit.set_bits(width)
            outputs.append(unit(x))
        wanted = take(target, index)
        # stem and head: plain squared error, whatever the method's loss
        loss = sum(distance(output, wanted) for output in outputs) if at_edge else method.loss(wanted, outputs)
        total = loss
        beta = beta_at(step, settings)
        if beta is not None:
            total = loss + settings.regularizer * sum(layer.relaxation.regularizer(beta) for layer in unit.layers)
        optimizer.zero_grad()
        total.backward()
        optimizer.param_groups[-1]["lr"] = _cosine(step - 1, settings) if steps else settings.lr_rounding
        optimizer.step()
        for quantizer in unit.quantizers:
            quantizer.keep_steps_positive()
        if step % max(1, settings.steps // CURVE_POINTS) == 0:
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"unit {unit.name!r}: the reconstruction loss is {value} at step {step}. Check its weights and "
                    f"the calibration images for NaN, or lower lr_rounding ({settings.lr_rounding})."
                )
            curve.append(value)
            progress(unit.name, settings.steps // CURVE_POINTS or 1, value)

    for layer in unit.layers:
        layer.set_rounding(layer.relaxation.hard())
    for quantizer in unit.quantizers:
        quantizer.drop = None
    return curve


def _cosine(step: int, settings: ReconstructionSettings) -> float:
    """Learning rate of the step sizes, from its full value to 0."""
    return settings.lr_step_size * (1 + math.cos(math.pi * step / settings.steps)) / 2


def reconstruct(
    model: MultiBitModel,
    images: Tensor,
    method: RoundingMethod,
    seed: int,
    checkpoint: Path | None = None,
    progress: Callable[[str, int, float], None] = lambda unit, steps, loss: None,
) -> list[dict[str, Any]]:
    """Reconstruct every unit of a model whose step sizes are set, in order.

    images: (count, ...) calibration images on the model's device · checkpoint: a file that is written after
    every unit and from which a later call continues · progress: called with the unit, the steps done since
    the last call and the loss. Returns one record a unit: name, loss curve, error before and after by width.
    """
    images = images.contiguous(memory_format=memory_format(images))
    fp, features = images, dict.fromkeys(method.widths, images)
    done: list[dict[str, Any]] = []
    if checkpoint is not None and checkpoint.exists():
        state, info = load_tensors(checkpoint)
        model.load_state_dict(state)
        done = info["units"]
    records = []
    for index, unit in enumerate(model.units):
        target = propagate(unit, fp, FULL_PRECISION)
        if index < len(done):
            records.append(done[index])
            progress(unit.name, method.settings.steps, 0.0)
        else:
            before = errors(unit, features, target)
            random = Random(seed, index, images.device)
            curve = learn(unit, method, fp, features, target, random, progress)
            after = errors(unit, features, target)
            records.append({"unit": unit.name, "loss": curve, "error_before": before, "error_after": after})
            if checkpoint is not None:
                save_tensors(checkpoint, model.state_dict(), {"units": records})
        fp, features = target, {width: propagate(unit, x, width) for width, x in features.items()}
    return records
