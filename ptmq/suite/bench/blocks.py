"""What an iteration of learning costs beside the plain passes that it contains, and where the rest goes."""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.common.device import keep_freed_memory
from ptmq.methods.interface import create
from ptmq.methods.reconstruction import Reconstruction
from ptmq.models.backbone import get_backbone
from ptmq.network.model import Unit
from ptmq.reconstruction.engine import Learner, Random
from ptmq.reconstruction.features import Features, propagate, take
from ptmq.reconstruction.losses import distance
from ptmq.reconstruction.settings import Execution
from ptmq.suite.bench.networks import BUDGET, DRAWN, GROUPS, few, random_images, random_model, wait
from ptmq.suite.deploy.latency import in_turn

BLOCKS = {  # a block of each kind: backbone and unit
    "resnet20-stage1": ("resnet20", "layer1.1"),
    "resnet20-stage2": ("resnet20", "layer2.1"),
    "resnet20-stage3": ("resnet20", "layer3.1"),
    "resnet18-stage1": ("resnet18", "layer1.1"),
    "resnet18-stage4": ("resnet18", "layer4.1"),
    "mobilenet-inverted-residual": ("mobilenet_v2", "features.3"),
    "deit-tiny-block": ("deit_tiny_patch16_224", "blocks.0"),
}
PROFILED = 3  # iterations
PROCESS_ITERATIONS = 30
BARRIER: Barrier  # in a process of a pool


def block_of(case: str, device: torch.device) -> tuple[Unit, Features]:
    """The block of a case with searched step sizes, and random features for it."""
    name, block = BLOCKS[case]
    backbone = get_backbone(name)
    model = random_model(backbone.network, backbone.blocks, GROUPS.widths, device)
    x = random_images(backbone.dataset, DRAWN).to(device)
    before = [unit.name for unit in model.units].index(block)
    for unit in model.units[:before]:
        x = propagate(unit, x, FULL_PRECISION)
    model.units, unit = model.units[before : before + 1], model.units[before]
    model.search_step_sizes(x, "minmax")
    return unit, Features(x, dict.fromkeys(GROUPS.widths, x), propagate(unit, x, FULL_PRECISION))


def plain_passes(unit: Unit, features: Features, batch_size: int, count: int) -> Callable[[], None]:
    """`count` floating-point forward and backward passes of the unit, weights' gradients included."""
    weights = [layer.weight for layer in unit.layers]
    index = torch.arange(batch_size, device=features.fp.device)

    def run() -> None:
        unit.set_bits(FULL_PRECISION)
        for weight in weights:
            weight.requires_grad_(True)
        for _ in range(count):
            distance(unit(take(features.fp, index)), take(features.target, index)).backward()
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None

    return run


class Iterations:
    """Iterations of one method on one block, beside those of others on the same: call it for one iteration."""

    def __init__(self, unit: Unit, features: Features, method: str, execution: Execution = Execution()):  # noqa: B008
        widths = GROUPS.widths if method == "ptmq" else [BitWidth(4, 4)]
        learned = create(method, {}, widths, GROUPS if method == "ptmq" else None)
        assert isinstance(learned, Reconstruction)
        (hooks,) = learned.passes()
        self.unit = unit
        self.learner = Learner(unit, hooks, features, Random(0, 0, unit.device), execution)
        self.drops = [quantizer.drop for quantizer in unit.quantizers]
        self.relaxations = [layer.quantizer.relaxation for layer in unit.layers]

    def __call__(self) -> None:
        for quantizer, drop in zip(self.unit.quantizers, self.drops, strict=True):
            quantizer.drop = drop
        for layer, relaxation in zip(self.unit.layers, self.relaxations, strict=True):
            layer.quantizer.relaxation = relaxation
        self.learner.iterate()


def interleaved(functions: list[Callable[[], None]], repeats: int, device: torch.device) -> list[list[float]]:
    """Seconds of each function, run in turn: `repeats` of each, or a few in BUDGET seconds."""
    return in_turn(functions, repeats, partial(wait, device), BUDGET)


def operators(iterate: Callable[[], None], device: torch.device) -> dict[str, float]:
    """Share of an iteration's time that each operator takes itself, the largest first."""
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=activities) as measured:
        for _ in range(PROFILED):
            iterate()
    own = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    # kernels have events of their own, and their time is in that of the operator, too
    events = [event for event in measured.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: getattr(event, own) for event in events}
    return {key: t / sum(times.values()) for key, t in sorted(times.items(), key=lambda item: -item[1])}


def block(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Medians of a QDrop and a PTMQ iteration, eager and compiled, and of one and three plain passes."""
    unit, features = block_of(case, device)
    batch_size = create("ptmq", {}, GROUPS.widths, GROUPS).settings.batch_size
    runs: dict[str, Callable[[], None]] = {
        "fp_1": plain_passes(unit, features, batch_size, 1),
        "fp_3": plain_passes(unit, features, batch_size, 3),
        "qdrop": Iterations(unit, features, "qdrop"),
        "ptmq": Iterations(unit, features, "ptmq"),
        "qdrop_compiled": Iterations(unit, features, "qdrop", Execution(compile=True)),
        "ptmq_compiled": Iterations(unit, features, "ptmq", Execution(compile=True)),
    }
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # nothing is compiled already
        start = time.perf_counter()
        runs["ptmq_compiled"]()
        compiling = time.perf_counter() - start
        times = interleaved(list(runs.values()), repeats, device)
    medians = {name: 1000 * statistics.median(taken) for name, taken in zip(runs, times, strict=True)}
    return {
        "backbone": BLOCKS[case][0], "unit": BLOCKS[case][1], "input": [batch_size, *features.fp.shape[1:]],
        "ms": medians,
        "ratio": {name: medians[name] / medians["fp_3" if "ptmq" in name else "fp_1"] for name in medians
                  if "fp" not in name},
        "compile_seconds": compiling,
        "repeats": len(times[0]),
        "operators": operators(runs["ptmq"], device),
    }  # fmt: skip


def _share(barrier: Barrier) -> None:
    """Give a process of a pool the barrier at which all of them wait for each other."""
    global BARRIER
    BARRIER = barrier


def _iterations_in_a_process(case: str, threads: int) -> float:
    """PTMQ iterations a second of one of several processes, from the moment when all are ready."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    iterate = Iterations(*block_of(case, torch.device("cpu")), "ptmq")
    for _ in range(3):
        iterate()
    BARRIER.wait(600)  # seconds: the other may have failed
    start = time.perf_counter()
    for _ in range(PROCESS_ITERATIONS):
        iterate()
    return PROCESS_ITERATIONS / (time.perf_counter() - start)


def processes(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """PTMQ iterations a second on a CPU: two processes with one thread each against one with two, in turn."""
    layouts, rates, rounds = {"1x2": (1, 2), "2x1": (2, 1)}, {}, few(repeats)
    for kind in ("resnet20-stage1", "mobilenet-inverted-residual", "deit-tiny-block"):
        taken: dict[str, list[float]] = {name: [] for name in layouts}
        for _ in range(rounds):
            for name, (count, threads) in layouts.items():
                context = get_context("spawn")
                with ProcessPoolExecutor(count, context, _share, (context.Barrier(count),)) as pool:
                    each = [pool.submit(_iterations_in_a_process, kind, threads) for _ in range(count)]
                    taken[name].append(sum(future.result() for future in each))
        rates[kind] = {name: statistics.median(values) for name, values in taken.items()}
    return {"iterations_a_second": rates, "repeats": rounds}
