"""The mixed-precision stage: accuracy against average bits and model size, and what a switch costs."""

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptmq.api import load_model
from ptmq.common import provenance
from ptmq.common.bits import BitWidth
from ptmq.common.device import keep_freed_memory
from ptmq.common.errors import InputError, require
from ptmq.common.files import sha256
from ptmq.data.datasets import open_images
from ptmq.data.images import Images
from ptmq.models.checkpoints import load_network
from ptmq.network.model import MultiBitModel
from ptmq.network.serialization import TENSORS
from ptmq.suite import mixed_precision, run_record
from ptmq.suite.calibration import calibration_index
from ptmq.suite.evaluation import correct_images, outputs_of_fp, score
from ptmq.suite.mixed_precision import Assignment, Choices
from ptmq.suite.profile import Run
from ptmq.training.adaptive_bn import recalibrate, recalibration_batches, recalibration_images

SENSITIVITY_IMAGES = 256  # calibration images that sensitivities are measured on
POINTS = 9  # budgets between the lowest and the highest width
REPEATS = 200  # switches that are timed
TIMED_BATCHES = 5  # of re-estimating BatchNorm


def budgets(model: MultiBitModel) -> list[float]:
    """Average weight bits to search for, evenly spaced between the lowest and the highest width, both left out."""
    low, high = model.widths[0].weight, model.widths[-1].weight
    return [low + (high - low) * i / (POINTS + 1) for i in range(1, POINTS + 1)]


def assignments(
    model: MultiBitModel, choices: Choices, bits: Sequence[float], kib: Sequence[float]
) -> dict[tuple[str, str], Assignment]:
    """What is scored, by kind and budget: every uniform width, and the best assignment of every budget.

    bits: budgets in average bits · kib: budgets in size; the standard ones where neither is given.
    """
    smallest = choices.kib({unit: min(widths) for unit, widths in choices.sensitivity.items()})
    for size in kib:
        require(size >= smallest, "--kib", f"at least {smallest:.4g}, all blocks at their lowest width", size)
    asked = {f"{size:g} KiB": choices.bits_within(size) for size in kib}
    asked |= {f"{average:.2f}": average for average in (bits if bits or kib else budgets(model))}
    uniform = {("uniform", str(width)): dict.fromkeys(choices.sensitivity, width) for width in model.widths}
    return uniform | {("mixed", name): mixed_precision.search(choices, average) for name, average in asked.items()}


def median_ms(switch: Callable[[int], None], repeats: int) -> float:
    """Median time of switch(i), in milliseconds."""
    times = []
    for i in range(repeats):
        start = time.perf_counter()
        switch(i)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)


def adaptive_bn_ms(network: nn.Module, train: Images, batches: Sequence[Tensor], device: torch.device) -> float:
    """Time of re-estimating BatchNorm statistics on a few batches of training images, in milliseconds a batch.

    batches: indices, each of a batch · Reading the images is part of it.
    """
    images = recalibration_images(train, itertools.cycle(batches), device)

    def batch(_: int) -> None:
        recalibrate(network, [next(images)])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return median_ms(batch, TIMED_BATCHES)


def switching(model: MultiBitModel, network: nn.Module, train: Images, device: torch.device) -> dict[str, float]:
    """What switching the whole network costs, in milliseconds and images, beside AdaptiveBN."""
    model.prepare()
    widths = model.widths
    prepared = median_ms(lambda i: _set(model, widths[i % len(widths)]), REPEATS)
    batches = recalibration_batches(len(train))
    return {
        "switch_ms": prepared,
        "switch_images": 0,
        "prepared_mib": model.prepared_mib,
        "adaptive_bn_ms": adaptive_bn_ms(network, train, batches, device) * len(batches),
        "adaptive_bn_images": sum(map(len, batches)),
    }


def _set(model: MultiBitModel, width: BitWidth) -> None:
    model.set_bits(width.weight, width.activation)


def frontier(
    folder: Path,
    weights: Path,
    split: str,
    fp_outputs: Path | None,
    data_dir: str | None,
    device: torch.device,
    bits: Sequence[float] = (),
    kib: Sequence[float] = (),
) -> dict[str, Any]:
    """The record of a calibrated multi-bit model with a width of its own for every unit.

    weights: its FP network, for the cost of AdaptiveBN · fp_outputs: as for `evaluate_model` · bits, kib: budgets in
    average bits of the weights that have a choice, and in KiB of all packed weights; nine standard ones where none is
    given.
    """
    model, info = load_model(folder)
    if not isinstance(model, MultiBitModel):
        method = info["run"]["method"]
        raise InputError(f"a model of {method} has one width for the whole network. Give a model of ptmq.")
    require(len(model.widths) > 1, "the model's widths", "two or more to choose from", str(model.widths[0]))
    run = Run(**info["run"])
    train, _ = open_images(run.backbone, "train", data_dir, run.dataset)
    calibration, _ = train.batch(calibration_index(len(train), run)[:SENSITIVITY_IMAGES])
    images, _ = open_images(run.backbone, split, data_dir, run.dataset)
    keep_freed_memory()
    model.to(device)
    calibration = calibration.to(device)
    choices = mixed_precision.measure(model, calibration)
    chosen = assignments(model, choices, bits, kib)
    fp = outputs_of_fp(model, fp_outputs, run.backbone, split, images, device)
    switches = {key: partial(mixed_precision.apply, model, assignment) for key, assignment in chosen.items()}
    operations = {}
    for key, switch in switches.items():
        switch()
        operations[key] = mixed_precision.bit_operations(model, calibration[:1])
    points = []
    for key, (right, kl) in score(model, switches, images, fp, device).items():
        (kind, budget), assignment = key, chosen[key]
        points.append({
            "kind": kind, "budget": budget,
            "average_bits": round(choices.average_bits(assignment), 4),
            "kib": round(choices.kib(assignment), 2), "bit_operations": operations[key],
            "top1": run_record.top1(right),
            "kl": round(kl, 6), "expected_kl": round(choices.cost(assignment), 6), "correct": int(right.sum()),
            "images": len(images),
            "assignment": {unit: str(width) for unit, width in mixed_precision.completed(model, assignment).items()},
        })  # fmt: skip
    network = load_network(run.backbone, weights).to(device)
    return {
        "format": run_record.FORMAT,
        "split": split,
        "fp_top1": run_record.top1(correct_images(fp, images)),
        "points": points,
        "sensitivity": {u: {str(w): kl for w, kl in widths.items()} for u, widths in choices.sensitivity.items()},
        "switching": switching(model, network, train, device),
        "run": info["run"],
        "protocol": info["protocol"],
        "sha256": {**info["sha256"], "model": sha256(folder / TENSORS)},
        "environment": run_record.environment(device),
        "code_sha256": provenance.code_sha256("ptmq.suite.frontier"),
        "commit": provenance.commit(),
    }
