"""The benchmark: what an iteration of learning costs beside the plain passes that it contains, and where the rest goes;
how large exported files are and how fast they run.

Every case is measured in one process and gives one record; networks have random weights and random images. Times that
are compared are taken in turn, so that they share whatever else the machine does: read ratios, not milliseconds.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from ptmq.api import calibrate
from ptmq.common import provenance
from ptmq.common.bits import FULL_PRECISION, BitGroups, BitWidth
from ptmq.common.device import keep_freed_memory, memory_format
from ptmq.common.errors import one_of
from ptmq.export.onnx_file import export_onnx
from ptmq.export.session import Deployed, open_session
from ptmq.export.skeleton import IMAGES
from ptmq.methods.interface import create
from ptmq.methods.reconstruction import Reconstruction
from ptmq.models.backbone import CNN_GROUPS, get_backbone
from ptmq.models.definitions.cifar_resnet import CifarResNet
from ptmq.network.model import MultiBitModel, Unit
from ptmq.network.place import QuantizationSpec
from ptmq.reconstruction.engine import Learner, Random
from ptmq.reconstruction.features import Features, propagate, take
from ptmq.reconstruction.losses import distance
from ptmq.reconstruction.settings import Execution
from ptmq.suite import run_record
from ptmq.suite.deploy.files import write_fp32
from ptmq.suite.deploy.latency import has_vnni, in_turn, spreads

GROUPS = BitGroups(*CNN_GROUPS.values())
SHAPES = {"cifar10": (3, 32, 32), "digits": (1, 8, 8), "imagenet": (3, 224, 224)}
BLOCKS = {  # a block of each kind: backbone and unit
    "resnet20-stage1": ("resnet20", "layer1.1"),
    "resnet20-stage2": ("resnet20", "layer2.1"),
    "resnet20-stage3": ("resnet20", "layer3.1"),
    "resnet18-stage1": ("resnet18", "layer1.1"),
    "resnet18-stage4": ("resnet18", "layer4.1"),
    "mobilenet-inverted-residual": ("mobilenet_v2", "features.3"),
    "deit-tiny-block": ("deit_tiny_patch16_224", "blocks.0"),
}
EXPORTED = ("resnet20", "shufflenetv2_x0_5", "resnet18", "mobilenet_v2", "vit_tiny_patch16_224")
EXPORT_BATCHES, EXPORT_IMAGES = (1, 32), 8  # images a call; images of the calibration, which times do not depend on
DRAWN = 64  # images from which an iteration draws its batch
BUDGET = 20  # seconds
PROFILED = 3  # iterations
DEPTHS, DEPTH_ITERATIONS, DEPTH_IMAGES = (20, 32, 44, 56), 10, 128
SWITCHES = 200
PROCESS_ITERATIONS = 30
BARRIER: Barrier  # in a process of a pool


def random_images(name: str, count: int) -> torch.Tensor:
    """Images of the size that the dataset has, (count, ...)."""
    x = torch.randn(count, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=memory_format(x))


def random_network(build: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A network with random weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def block_of(case: str, device: torch.device) -> tuple[Unit, Features]:
    """The block of a case with searched step sizes, and random features for it."""
    name, block = BLOCKS[case]
    backbone = get_backbone(name)
    model = MultiBitModel(random_network(backbone.network), QuantizationSpec(backbone.blocks, GROUPS.widths)).to(device)
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
    if device.type == "cuda":
        return in_turn(functions, repeats, partial(torch.cuda.synchronize, device), BUDGET)
    return in_turn(functions, repeats, budget=BUDGET)


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


def few(repeats: int) -> int:
    """How often something is measured that takes minutes, where iterations are measured `repeats` times."""
    return max(1, repeats // 30)


def depth(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Seconds of a whole calibration against the depth of a CIFAR ResNet, in turn, the least of a few."""
    method = create("ptmq", {"iterations": DEPTH_ITERATIONS}, GROUPS.widths, GROUPS)
    blocks = get_backbone("resnet20").blocks
    rounds = few(repeats)
    images = random_images("cifar10", DEPTH_IMAGES).to(device)
    seconds = dict.fromkeys(DEPTHS, float("inf"))
    for _ in range(rounds):
        for layers in DEPTHS:
            network = random_network(partial(CifarResNet, layers))
            model = MultiBitModel(network, QuantizationSpec(blocks, GROUPS.widths)).to(device)
            start = time.perf_counter()
            method.calibrate(model, images, 0)
            seconds[layers] = min(seconds[layers], time.perf_counter() - start)
    return {"iterations": DEPTH_ITERATIONS, "images": DEPTH_IMAGES, "seconds": seconds, "repeats": rounds}


def switching(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Median milliseconds of switching ResNet-20 to another width, with weights computed before and not."""
    backbone = get_backbone("resnet20")
    model = MultiBitModel(random_network(backbone.network), QuantizationSpec(backbone.blocks, GROUPS.widths)).to(device)
    model.search_step_sizes(random_images("cifar10", DRAWN).to(device), "minmax")

    def switch(number: int, prepared: bool) -> float:
        width = model.widths[number % len(model.widths)]
        if not prepared:
            model.forget()
        start = time.perf_counter()
        model.set_bits(width.weight, width.activation)
        if not prepared:
            for layer in model.layers:
                layer.weight_at(layer.bits)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return 1000 * (time.perf_counter() - start)

    unprepared = statistics.median(switch(i, False) for i in range(SWITCHES))
    model.prepare()
    return {
        "repeats": SWITCHES,
        "prepared_ms": statistics.median(switch(i, True) for i in range(SWITCHES)),
        "unprepared_ms": unprepared,
        "prepared_mib": model.prepared_mib,
        "fp_mib": sum(layer.weight.numel() * layer.weight.element_size() for layer in model.layers) / 2**20,
    }


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


def exported(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """Bytes of one ONNX file of all widths and of the FP32 network's, and milliseconds of a call of each, in turn.

    The model is one of `nested` that learns nothing; 8 bits a weight are stored, and the values of the weights decide
    neither size nor speed.
    """
    name = case.removeprefix("onnx-")
    backbone = get_backbone(name).complete()
    network, x = random_network(backbone.network), random_images(backbone.dataset, max(EXPORT_BATCHES))
    widths = [str(width) for width in GROUPS.widths]
    few_images = x[:EXPORT_IMAGES]
    model = calibrate(network, few_images, "nested", widths, target="onnx", iterations=0, device="cpu", progress=False)
    with tempfile.TemporaryDirectory() as folder:
        file, fp32 = Path(folder, "all.onnx"), Path(folder, "fp32.onnx")
        done = export_onnx(model, file, normalization=(backbone.mean, backbone.std))
        write_fp32(network, name, x.shape[1:], fp32)
        size = {"bytes": done.bytes, "fp32_bytes": fp32.stat().st_size}
        threads = torch.get_num_threads()
        deployed, reference = Deployed(file, threads), open_session(fp32, threads)
    latency, rounds = {}, {}
    for count in EXPORT_BATCHES:
        batch = x[:count].numpy()
        pixels = np.zeros(batch.shape, dtype=np.uint8)
        calls = {width: partial(deployed, pixels, width) for width in widths}
        calls["fp32"] = partial(reference.run, None, {IMAGES: batch})
        times = in_turn(list(calls.values()), repeats, budget=BUDGET)
        latency[count] = spreads(calls, times)
        rounds[count] = len(times[0])
    return {
        "backbone": name, "input": list(x.shape[1:]), "size": size, "latency": latency, "integer": done.integer,
        "floats": [list(row) for row in done.floats], "vnni": has_vnni(), "repeats": rounds,
    }  # fmt: skip


CASES: dict[str, Callable[[str, int, torch.device], dict[str, Any]]] = {
    **dict.fromkeys(BLOCKS, block),
    "depth": depth,
    "switching": switching,
    "processes": processes,
    **{f"onnx-{name}": exported for name in EXPORTED},
}


def measure(case: str, repeats: int, device: torch.device) -> dict[str, Any]:
    """The record of one case."""
    one_of("--case", case, CASES)
    if case == "processes" or case.startswith("onnx"):
        device = torch.device("cpu")
    result = CASES[case](case, repeats, device)
    return {
        "format": run_record.FORMAT,
        "case": case,
        **result,
        "peak_mb": run_record.peak_mb(device),
        "environment": run_record.environment(device),
        "code_sha256": provenance.code_sha256("ptmq.suite.bench"),
        "commit": provenance.commit(),
    }


def lines(result: dict[str, Any]) -> Iterator[str]:
    """What a person reads of a record."""
    for key in ("ms", "ratio", "seconds", "iterations_a_second"):
        for name, value in result.get(key, {}).items():
            yield f"{key.replace('_', ' '):16} {name!s:28} {value if isinstance(value, dict) else f'{value:.2f}'}"
    for count, times in result.get("latency", {}).items():
        for name, taken in times.items():
            yield f"{f'ms, batch {count}':16} {name:28} {taken['median']:.2f}"
    for name, count in result.get("size", {}).items():
        yield f"{'size':16} {name:28} {count:,}"
    for key in ("compile_seconds", "prepared_ms", "unprepared_ms", "prepared_mib", "peak_mb"):
        if key in result:
            yield f"{key.replace('_', ' '):16} {result[key]:.3f}"
