"""The reconstruction engine: one loop for every method that learns rounding block by block.

Features stream forward: what block k puts out, in floating point and at every width, is what block k + 1
gets, so the cost of a calibration is linear in depth. Every unit has random generators of its own, seeded by
(seed, unit): a run that continues after a checkpoint draws what an uninterrupted run would have drawn.
"""

import math
import time
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


@dataclass
class Checkpoint:
    """The file that a reconstruction writes after every unit and continues from, and the seconds spent so far."""

    path: Path
    earlier: float = 0.0  # seconds of the runs before this one
    started: float = field(default_factory=time.perf_counter)

    def load(self, model: MultiBitModel) -> list[dict[str, Any]]:
        """Bring the model to where the file left it; returns the records of the units that are done."""
        if not self.path.exists():
            return []
        state, info = load_tensors(self.path)
        model.load_state_dict(state)
        self.earlier = info["seconds"]
        return info["units"]

    def save(self, model: MultiBitModel, units: list[dict[str, Any]]) -> None:
        """Write the model's state and the records of the units that are done, atomically."""
        save_tensors(self.path, model.state_dict(), {"units": units, "seconds": self.seconds()})

    def seconds(self) -> float:
        """Seconds since the start, those before an interruption included."""
        return self.earlier + time.perf_counter() - self.started


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


@dataclass
class Features:
    """A unit's input and target for all calibration images, (images, ...) each.

    fp, quantized: the input in floating point and at every width · target: the unit's FP output.
    """

    fp: Tensor
    quantized: dict[BitWidth, Tensor]
    target: Tensor


def propagate_all(unit: Unit, quantized: dict[BitWidth, Tensor]) -> dict[BitWidth, Tensor]:
    """The unit's output at every width for that width's own input."""
    return {width: propagate(unit, x, width) for width, x in quantized.items()}


def errors(outputs: dict[BitWidth, Tensor], target: Tensor) -> dict[str, float]:
    """Reconstruction error at every width on the first ERROR_IMAGES images, {'W3A3': mean squared error}."""
    few = target[:ERROR_IMAGES]
    return {str(width): float((out[:ERROR_IMAGES] - few).square().mean()) for width, out in outputs.items()}


class Learner:
    """Learns one unit's rounding and activation step sizes, step by step."""

    def __init__(self, unit: Unit, method: RoundingMethod, features: Features, random: Random):
        self.unit, self.method, self.features, self.random = unit, method, features, random
        self.settings = method.settings
        self.done = 0
        for layer in unit.layers:
            layer.relaxation = method.relax(layer)
        for quantizer in unit.quantizers:
            quantizer.drop = Drop(self.settings.keep, random.device)
        roundings = [p for layer in unit.layers for p in layer.relaxation.parameters()]
        steps = [p for quantizer in unit.quantizers for p in quantizer.step.parameters()]
        self.optimizer = torch.optim.Adam(
            [
                {"params": roundings, "lr": self.settings.lr_rounding},
                {"params": steps, "lr": self.settings.lr_step_size},
            ]
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, [lambda step: 1.0, self._cosine])

    def step(self) -> Tensor:
        """One mini-batch at the drawn widths, one update; returns the loss without the regularizer, a scalar."""
        unit, method, features = self.unit, self.method, self.features
        index = torch.randint(len(features.fp), (self.settings.batch_size,), generator=self.random.host)
        index = index.to(features.fp.device)
        drawn = method.draw(self.random.host)
        for layer in unit.layers:
            layer.soften(width.weight for width in drawn)
        quantized = [take(features.quantized[width], index) for width in drawn]
        outputs = []
        for width, x in zip(drawn, method.mix(take(features.fp, index), quantized, self.random.device), strict=True):
            unit.set_bits(width)
            outputs.append(unit(x))
        loss = self._loss(take(features.target, index), outputs)
        self.done += 1
        beta = beta_at(self.done, self.settings)
        total = loss
        if beta is not None:
            total = loss + self.settings.regularizer * sum(layer.relaxation.regularizer(beta) for layer in unit.layers)
        self.optimizer.zero_grad()
        total.backward()
        self.optimizer.step()
        self.schedule.step()
        for quantizer in unit.quantizers:
            quantizer.keep_steps_positive()
        return loss.detach()

    def finish(self) -> None:
        """Make the rounding hard and stop dropping."""
        for layer in self.unit.layers:
            layer.set_rounding(layer.relaxation.hard())
        for quantizer in self.unit.quantizers:
            quantizer.drop = None

    def _loss(self, target: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The method's loss; plain squared error for stem and head, whatever the method."""
        if self.unit.name in (STEM, HEAD):
            return sum(distance(output, target) for output in outputs)
        return self.method.loss(target, outputs)

    def _cosine(self, step: int) -> float:
        """Factor on the step sizes' learning rate, from 1 to 0."""
        return (1 + math.cos(math.pi * step / self.settings.steps)) / 2


def learn(learner: Learner, progress: Callable[[str, int, float], None]) -> list[float]:
    """Run all steps of a learner; afterwards the unit's rounding is hard. Returns the loss at CURVE_POINTS steps."""
    steps, name, curve = learner.settings.steps, learner.unit.name, []
    every = max(1, steps // CURVE_POINTS)
    for step in range(1, steps + 1):
        loss = learner.step()
        if step % every == 0:  # seldom: reading the loss makes a GPU wait
            curve.append(float(loss))
            if not math.isfinite(curve[-1]):
                raise InputError(
                    f"unit {name!r}: the reconstruction loss is {curve[-1]} at step {step}. Check its weights and the "
                    f"calibration images for NaN, or lower lr_rounding ({learner.settings.lr_rounding})."
                )
        progress(name, 1, curve[-1] if curve else math.nan)
    learner.finish()
    return curve


def reconstruct(
    model: MultiBitModel,
    images: Tensor,
    method: RoundingMethod,
    seed: int,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[str, int, float], None] = lambda unit, steps, loss: None,
) -> list[dict[str, Any]]:
    """Reconstruct every unit of a model whose step sizes are set, in order.

    images: (count, ...) calibration images on the model's device · checkpoint: written after every
    unit; a later call continues from it · progress: called with the unit, the steps done since
    the last call and the loss. Returns one record a unit: name, loss curve, error before and after by width.
    """
    images = images.contiguous(memory_format=memory_format(images))
    fp, quantized = images, dict.fromkeys(method.widths, images)
    done = checkpoint.load(model) if checkpoint else []
    records = []
    for index, unit in enumerate(model.units):
        features = Features(fp, quantized, propagate(unit, fp, FULL_PRECISION))
        if index < len(done):
            records.append(done[index])
            progress(unit.name, method.settings.steps, math.nan)
            fp, quantized = features.target, propagate_all(unit, quantized)
            continue
        few = {width: x[:ERROR_IMAGES] for width, x in quantized.items()}
        before = errors(propagate_all(unit, few), features.target)
        curve = learn(Learner(unit, method, features, Random(seed, index, images.device)), progress)
        fp, quantized = features.target, propagate_all(unit, quantized)
        after = errors(quantized, features.target)
        records.append({"unit": unit.name, "loss": curve, "error_before": before, "error_after": after})
        if checkpoint:
            checkpoint.save(model, records)
    return records
