"""The reconstruction engine: one loop for every method that learns rounding block by block, or layer by layer.

Features stream forward: what block k puts out, in floating point and at every width, is what block k + 1
gets, so the cost of a calibration is linear in depth. Everything that is learned at a time has random generators
of its own, seeded by (seed, its number): a run that continues after an interruption draws what an uninterrupted run
would have drawn.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial, reduce
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.common.device import give_back_freed_memory, memory_format
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors, tensors_sha256
from ptmq.common.provenance import fingerprint
from ptmq.network.model import MultiBitModel, Unit
from ptmq.quantization.activation_quantizer import Drop
from ptmq.quantization.rounding import Relaxation
from ptmq.quantization.weight_quantizer import GridWeightQuantizer
from ptmq.reconstruction.features import (
    Feature,
    Features,
    part_features,
    propagate,
    reconstruction_error,
    take,
)
from ptmq.reconstruction.losses import channel_axis, distance
from ptmq.reconstruction.passes import Pass
from ptmq.reconstruction.settings import Execution

CURVE_POINTS = 20  # of the loss, kept in the record of a unit
EPSILON = 1e-15  # of Adam for step sizes: their gradients are as small as the features and the rounding error are
Progress = Callable[
    [str, int, float], None
]  # what is told: the unit, the iterations done since the last call, the loss


def silent(unit: str, iterations: int, loss: float) -> None:
    """Progress that nobody is told of."""


@dataclass
class ResumeFile:
    """The file that a reconstruction writes after every unit and continues from, and the seconds spent so far.

    It knows what it is of, by `identity_of`: another calibration does not continue from it. Without a path nothing is
    written.
    """

    path: Path | None
    earlier: float = 0.0  # seconds of the runs before this one
    identity: dict[str, str] = field(default_factory=dict)
    started: float = field(default_factory=time.perf_counter)

    def load(self, model: MultiBitModel, identity: dict[str, str]) -> list[dict[str, Any]]:
        """Bring the model to where the file left it; returns the records of the units that are done.

        identity: of this calibration, see `identity_of`. Raises InputError where the file is of another one.
        """
        self.identity = identity
        if self.path is None or not self.path.exists():
            return []
        state, info = load_tensors(self.path)
        known = info.get("identity", {})
        others = [what for what, value in identity.items() if known.get(what) != value]
        if others:
            raise InputError(
                f"file {str(self.path)!r} is of another calibration, of other {', '.join(others)}. Delete it, or give "
                "another one."
            )
        model.load_state_dict(state)
        self.earlier = info["seconds"]
        return info["units"]

    def save(self, model: MultiBitModel, units: list[dict[str, Any]]) -> None:
        """Write the model's state and the records of the units that are done, atomically."""
        if self.path is None:
            return
        info = {"identity": self.identity, "units": units, "seconds": self.seconds()}
        save_tensors(self.path, model.state_dict(), info)

    def seconds(self) -> float:
        """Seconds since the start, those before an interruption included."""
        return self.earlier + time.perf_counter() - self.started


def identity_of(
    model: MultiBitModel, images: Tensor, passes: Sequence[Pass], seed: int, execution: Execution
) -> dict[str, str]:
    """What a reconstruction depends on, in short hashes: the FP network, the images, the seed, the settings."""
    weights = {name: value for name, value in model.named_parameters() if name.endswith((".weight", ".bias"))}
    settings = [[type(hooks).__name__, asdict(hooks.settings), list(map(str, hooks.widths))] for hooks in passes]
    return {
        "network": tensors_sha256(weights),
        "images": tensors_sha256({"images": images}),
        "seed": str(seed),
        "settings": fingerprint([settings, execution.autocast]),
    }


@dataclass
class Random:
    """The generators of one part: `host` draws batches and widths, `device` draws masks."""

    seed: int
    part: int  # its number, counted through all passes
    on: torch.device
    host: torch.Generator = field(init=False)
    device: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        number = self.seed * 100_003 + self.part * 2
        self.host = torch.Generator().manual_seed(number)
        self.device = torch.Generator(self.on).manual_seed(number + 1)


class Learner:
    """Learns one unit's rounding and activation step sizes, iteration by iteration.

    importance: weights of the squared error in place of the pass's loss, of the target's shape.
    """

    def __init__(
        self,
        unit: Unit,
        hooks: Pass,
        features: Features,
        random: Random,
        execution: Execution,
        importance: Tensor | None = None,
    ):
        self.unit, self.hooks, self.features, self.random = unit, hooks, features, random
        self.execution, self.importance = execution, importance
        self.settings = hooks.settings
        self.done = 0
        self.relaxed: list[GridWeightQuantizer] = []
        self.relaxations: list[Relaxation] = []  # theirs
        for layer in unit.layers:
            relaxation = layer.quantizer.relaxation = hooks.relax(layer) if layer.quantizer.widths else None
            if relaxation is not None:
                self.relaxed.append(layer.quantizer)
                self.relaxations.append(relaxation)
        more = hooks.begin(unit, features)  # nothing drops yet
        apart = {id(p) for group in more for p in group["params"]}
        for quantizer in unit.quantizers:
            quantizer.requires_grad_(True)
            quantizer.drop = Drop(self.settings.keep, random.device, execution.compile)
        roundings = [p for relaxation in self.relaxations for p in relaxation.parameters() if id(p) not in apart]
        others = [*self._step_sizes(), *more]
        self.optimizer = torch.optim.Adam([{"params": roundings, "lr": self.settings.lr_rounding}, *others])
        cosine = partial(_cosine, self.settings.iterations)  # without the learner: it would hold its features longer
        schedules: dict[str, Callable[[int], float]] = {"constant": lambda iteration: 1.0, "cosine": cosine}
        of_rounding = schedules[self.settings.lr_rounding_schedule]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, [of_rounding, *[cosine] * len(others)])

    def iterate(self) -> Tensor:
        """One mini-batch at the drawn widths, one update; returns the loss without the regularizer, a scalar."""
        unit, hooks, features = self.unit, self.hooks, self.features
        index = torch.randint(len(features.fp), (self.settings.batch_size,), generator=self.random.host)
        index = index.to(features.fp.device)
        drawn = hooks.draw(self.random.host)
        for weights in self.relaxed:
            weights.soften(width.weight for width in drawn)
        fp, quantized = self._batch(features.fp, index), [self._batch(features.quantized[w], index) for w in drawn]
        outputs = []
        for width, x in zip(drawn, hooks.mix(fp, quantized, self.random.device), strict=True):
            unit.set_bits(width)
            with torch.autocast(self.random.on.type, torch.bfloat16, enabled=self.execution.autocast):
                outputs.append(unit(x).float())
        loss = self._loss(index, outputs)
        if loss.dim():
            raise InputError(
                f"{type(hooks).__name__}.loss must be a scalar. Got a tensor of shape {tuple(loss.shape)}."
            )
        self.done += 1
        self.optimizer.zero_grad()
        total = loss + hooks.regularizer(self.relaxations, self.done)
        if total.requires_grad:  # not where the unit is in floating point at all drawn widths
            total.backward()
            self.optimizer.step()
            self.schedule.step()
        for quantizer in unit.quantizers:
            quantizer.keep_step_sizes_positive()
        return loss.detach()

    def rounding_histogram(self) -> list[int]:
        """How many soft rounding values lie in each part of [0, 1], all layers together; empty where there are none."""
        counts = [count for relaxation in self.relaxations if (count := relaxation.histogram()) is not None]
        return [int(n) for n in reduce(torch.add, counts)] if counts else []

    def finish(self) -> None:
        """Make the rounding hard and stop dropping."""
        for weights in self.relaxed:
            if weights.relaxation is not None:
                weights.harden()
        for quantizer in self.unit.quantizers:
            quantizer.requires_grad_(False)
            quantizer.drop = None

    def _step_sizes(self) -> list[dict[str, Any]]:
        """The activation step sizes, with their learning rates."""
        steps = [p for quantizer in self.unit.quantizers for p in quantizer.step.parameters()]
        rate = self.settings.lr_step_size
        if not self.settings.lr_step_size_relative:
            return [{"params": steps, "lr": rate}]
        return [{"params": [step], "lr": rate * float(step.detach()), "eps": EPSILON} for step in steps]

    def _batch(self, x: Feature, index: Tensor) -> Tensor:
        """Rows `index` of x, on the unit's device."""
        return take(x, index).to(self.random.on)

    def _loss(self, index: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """The pass's loss; its plain error for stem and head, whatever the method."""
        target = self._with_channels(self._batch(self.features.target, index))
        outputs = [self._with_channels(output) for output in outputs]
        if self.importance is not None:
            weights = self._with_channels(self._batch(self.importance, index))
            return reduce(torch.add, (distance(output, target, importance=weights) for output in outputs))
        if self.unit.is_edge:
            return self.hooks.error(target, outputs)
        return self.hooks.loss(target, outputs)

    def _with_channels(self, x: Tensor) -> Tensor:
        """A feature of the unit with its channels where losses look for them: (n, h, w, c) -> (n, c, h, w)."""
        return x.movedim(self.unit.channel_axis, channel_axis(x))


def _cosine(iterations: int, iteration: int) -> float:
    """Factor on a learning rate, from 1 to 0."""
    return (1 + math.cos(math.pi * iteration / iterations)) / 2


@contextmanager
def learning(learner: Learner) -> Iterator[Learner]:
    """While a unit learns it is soft and drops; afterwards, however it ended, it is not."""
    try:
        yield learner
    finally:
        learner.finish()


def learn(learner: Learner, progress: Progress) -> list[float]:
    """Run all iterations of a learner; returns the loss at CURVE_POINTS of them; none without parameters."""
    iterations, name, curve = learner.settings.iterations, learner.unit.name, []
    if not any(group["params"] for group in learner.optimizer.param_groups):
        progress(name, iterations, math.nan)
        return []
    every = math.ceil(iterations / CURVE_POINTS)
    for iteration in range(1, iterations + 1):
        loss = learner.iterate()
        if iteration % every == 0:  # seldom: reading the loss makes a GPU wait
            curve.append(float(loss))
            if not math.isfinite(curve[-1]):
                raise InputError(
                    f"unit {name!r}: the reconstruction loss is {curve[-1]} at iteration {iteration}. Check its "
                    "weights and the calibration images for NaN, or lower lr_rounding "
                    f"({learner.settings.lr_rounding})."
                )
        progress(name, 1, curve[-1] if curve else math.nan)
    return curve


def count_iterations(model: MultiBitModel, passes: Sequence[Pass]) -> int:
    """How many iterations a reconstruction takes in all."""
    return sum(hooks.settings.iterations * len(hooks.parts(unit)) for hooks in passes for unit in model.units)


def reconstruct(
    model: MultiBitModel,
    images: Tensor,
    passes: Sequence[Pass],
    seed: int,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    resume: ResumeFile | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """Reconstruct a model whose step sizes are set: every pass goes through its units in order.

    images: (count, ...) calibration images, on the model's device or in main memory: all features stay there
    · resume: written after everything that is learned at a time; a later call continues from it.
    Returns one record a unit (or layer, where a pass learns layers): name,
    iterations, loss curve, histogram of h(V) before and after, error before and after by width.
    """
    images = images.cpu() if execution.features_in_main_memory else images
    images = images.contiguous(memory_format=memory_format(images))
    give_back_freed_memory()
    done = []
    if resume and resume.path:
        done = resume.load(model, identity_of(model, images, passes, seed, execution))
    records: list[dict[str, Any]] = []
    for hooks in passes:
        fp = images
        quantized: dict[BitWidth, Feature] = dict.fromkeys(hooks.widths, images)
        for position, unit in enumerate(model.units):
            whole = Features(fp, quantized, propagate(unit, fp, FULL_PRECISION))
            for part in hooks.parts(unit):
                number = len(records)
                if number < len(done):
                    records.append(done[number])
                    progress(part.name, hooks.settings.iterations, math.nan)
                    continue
                if part is not unit and type(hooks).importance is not Pass.importance:
                    raise InputError(f"{type(hooks).__name__}.importance is for whole units. Leave it out, or `parts`.")
                random = Random(seed, number, unit.device)
                later = model.units[position + 1 :]
                records.append(
                    _learn_part(part, hooks, part_features(unit, part, whole), later, random, execution, progress)
                )
                if resume:
                    resume.save(model, records)
            give_back_freed_memory()
            hooks.hand_on(unit, quantized, Random(seed, -1 - position, unit.device).host)
            fp = whole.target
            del whole  # what entered the unit is not needed any more
    return records


def _learn_part(
    part: Unit, hooks: Pass, features: Features, later: Sequence[Unit], random: Random, execution: Execution,
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Learn a unit, or a part of one; returns its record. later: the units behind it."""
    before = reconstruction_error(part, features)
    importance = hooks.importance(part, later, features)
    entry: dict[str, Any] = {"unit": part.name, "iterations": hooks.settings.iterations}
    with learning(Learner(part, hooks, features, random, execution, importance)) as learner:
        entry |= {"h_before": learner.rounding_histogram(), "loss": learn(learner, progress)}
        entry["h_after"] = learner.rounding_histogram()
    hooks.end(part, features)
    return entry | {"error_before": before, "error_after": reconstruction_error(part, features)}
