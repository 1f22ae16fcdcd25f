"""The reconstruction engine: one loop for every method that learns rounding block by block, or layer by layer.

Features stream forward: what block k puts out, in floating point and at every width, is what block k + 1
gets, so the cost of a calibration is linear in depth. Everything that is learned at a time has random generators
of its own, seeded by (seed, its number): a run that continues after a checkpoint draws what an uninterrupted run
would have drawn.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors
from ptmq.network.graph import HEAD, STEM
from ptmq.network.layers import Drop
from ptmq.network.model import MultiBitModel, Unit
from ptmq.reconstruction.features import (
    Features,
    memory_format,
    part_features,
    propagate,
    propagate_all,
    reconstruction_error,
    take,
)
from ptmq.reconstruction.losses import distance
from ptmq.reconstruction.phase import Phase

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


@dataclass
class Random:
    """The generators of one part: `host` draws batches and widths, `device` draws masks."""

    seed: int
    part: int  # its number, counted through all phases
    on: torch.device
    host: torch.Generator = field(init=False)
    device: torch.Generator = field(init=False)

    def __post_init__(self):
        number = self.seed * 100_003 + self.part * 2
        self.host = torch.Generator().manual_seed(number)
        self.device = torch.Generator(self.on).manual_seed(number + 1)


class Learner:
    """Learns one unit's rounding and activation step sizes, step by step.

    importance: weights of the squared error in place of the phase's loss, of the target's shape.
    """

    def __init__(self, unit: Unit, phase: Phase, features: Features, random: Random, importance: Tensor | None = None):
        self.unit, self.phase, self.features, self.random = unit, phase, features, random
        self.importance = importance
        self.settings = phase.settings
        self.done = 0
        for layer in unit.layers:
            layer.relaxation = phase.relax(layer)
        for quantizer in unit.quantizers:
            quantizer.drop = Drop(self.settings.keep, random.device, self.settings.compile)
        self.relaxed = [layer for layer in unit.layers if layer.relaxation is not None]
        roundings = [p for layer in self.relaxed for p in layer.relaxation.parameters()]
        steps = [p for quantizer in unit.quantizers for p in quantizer.step.parameters()]
        self.optimizer = torch.optim.Adam(
            [
                {"params": roundings, "lr": self.settings.lr_rounding},
                {"params": steps, "lr": self.settings.lr_step_size},
            ]
        )
        schedules = {"constant": lambda step: 1.0, "cosine": self._cosine}
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, [schedules[self.settings.lr_rounding_schedule], self._cosine]
        )

    def step(self) -> Tensor:
        """One mini-batch at the drawn widths, one update; returns the loss without the regularizer, a scalar."""
        unit, phase, features = self.unit, self.phase, self.features
        index = torch.randint(len(features.fp), (self.settings.batch_size,), generator=self.random.host)
        index = index.to(features.fp.device)
        drawn = phase.draw(self.random.host)
        for layer in self.relaxed:
            layer.soften(width.weight for width in drawn)
        fp, quantized = self._batch(features.fp, index), [self._batch(features.quantized[w], index) for w in drawn]
        outputs = []
        for width, x in zip(drawn, phase.mix(fp, quantized, self.random.device), strict=True):
            unit.set_bits(width)
            with torch.autocast(self.random.on.type, torch.bfloat16, enabled=self.settings.autocast):
                outputs.append(unit(x).float())
        loss = self._loss(index, outputs)
        if loss.dim():
            raise InputError(
                f"{type(phase).__name__}.loss must be a scalar. Got a tensor of shape {tuple(loss.shape)}."
            )
        self.done += 1
        self.optimizer.zero_grad()
        (loss + phase.regularizer([layer.relaxation for layer in self.relaxed], self.done)).backward()
        self.optimizer.step()
        self.schedule.step()
        for quantizer in unit.quantizers:
            quantizer.keep_steps_positive()
        return loss.detach()

    def rounding_histogram(self) -> list[int]:
        """How many soft rounding values lie in each part of [0, 1], all layers together; empty where there are none."""
        counts = [layer.relaxation.histogram() for layer in self.relaxed]
        return [int(n) for n in sum(counts)] if counts and counts[0] is not None else []

    def finish(self) -> None:
        """Make the rounding hard and stop dropping."""
        for layer in self.relaxed:
            layer.set_rounding(layer.relaxation.hard(), layer.relaxation.steps)
        for quantizer in self.unit.quantizers:
            quantizer.drop = None

    def _batch(self, x: Tensor, index: Tensor) -> Tensor:
        """Rows `index` of x, on the unit's device."""
        return take(x, index).to(self.random.on)

    def _loss(self, index: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The phase's loss; its plain error for stem and head, whatever the method."""
        target = self._batch(self.features.target, index)
        if self.importance is not None:
            weights = self._batch(self.importance, index)
            return sum(distance(output, target, importance=weights) for output in outputs)
        if self.unit.name in (STEM, HEAD):
            return Phase.loss(self.phase, target, outputs)
        return self.phase.loss(target, outputs)

    def _cosine(self, step: int) -> float:
        """Factor on a learning rate, from 1 to 0."""
        return (1 + math.cos(math.pi * step / self.settings.steps)) / 2


def learn(learner: Learner, progress: Callable[[str, int, float], None]) -> list[float]:
    """Run all steps of a learner; returns the loss at CURVE_POINTS steps."""
    steps, name, curve = learner.settings.steps, learner.unit.name, []
    every = math.ceil(steps / CURVE_POINTS)
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
    return curve


def count_steps(model: MultiBitModel, phases: Sequence[Phase]) -> int:
    """How many steps a reconstruction takes in all."""
    return sum(phase.settings.steps * len(phase.parts(unit)) for phase in phases for unit in model.units)


def reconstruct(
    model: MultiBitModel,
    images: Tensor,
    phases: Sequence[Phase],
    seed: int,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[str, int, float], None] = lambda unit, steps, loss: None,
) -> list[dict[str, Any]]:
    """Reconstruct a model whose step sizes are set: every phase goes through its units in order.

    images: (count, ...) calibration images, on the model's device or in main memory: all features stay there
    · checkpoint: written after everything that is learned at a time; a later call continues from it
    · progress: called with the unit, the steps done since the last call and the loss.
    Returns one record a unit (or layer, where a phase learns layers): name,
    steps, loss curve, histogram of h(V) before and after, error before and after by width.
    """
    images = images.contiguous(memory_format=memory_format(images))
    done = checkpoint.load(model) if checkpoint else []
    records = []
    for phase in phases:
        fp, quantized = images, dict.fromkeys(phase.widths, images)
        for position, unit in enumerate(model.units):
            whole = Features(fp, quantized, propagate(unit, fp, FULL_PRECISION))
            for part in phase.parts(unit):
                number = len(records)
                if number < len(done):
                    records.append(done[number])
                    progress(part.name, phase.settings.steps, math.nan)
                    continue
                features = part_features(unit, part, whole)
                before = reconstruction_error(part, features)
                importance = phase.importance(part, model.units[position + 1 :], features)
                if importance is not None and part is not unit:
                    raise InputError(f"{type(phase).__name__}.importance is for whole units. Leave it out, or `parts`.")
                learner = Learner(part, phase, features, Random(seed, number, unit.device), importance)
                entry = {"unit": part.name, "steps": phase.settings.steps, "h_before": learner.rounding_histogram()}
                entry |= {"loss": learn(learner, progress), "h_after": learner.rounding_histogram()}
                learner.finish()
                entry |= {"error_before": before, "error_after": reconstruction_error(part, features)}
                records.append(entry)
                if checkpoint:
                    checkpoint.save(model, records)
            propagate_all(unit, quantized)
            fp = whole.target
    return records
