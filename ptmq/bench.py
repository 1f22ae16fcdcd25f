"""A benchmark: one PTMQ step against the three plain FP forward and backward passes that it contains."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from ptmq.backbones import CNN_GROUPS, get_backbone
from ptmq.bits import FULL_PRECISION, BitGroups
from ptmq.features import Features, memory_format, propagate, take
from ptmq.graph import HEAD, STEM
from ptmq.losses import distance
from ptmq.methods import create
from ptmq.multibit import MultiBitModel, Unit
from ptmq.reconstruct import Learner, Random

GROUPS = BitGroups(*CNN_GROUPS.values())
IMAGES = 128
SHAPES = {"cifar10": (3, 32, 32), "digits": (1, 8, 8), "imagenet": (3, 224, 224)}


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


def interleaved(functions: list[Callable[[], None]], repeats: int, device: torch.device) -> list[float]:
    """Median seconds of each function, run in turn so that they share whatever else the machine does."""
    times: list[list[float]] = [[] for _ in functions]
    for repeat in range(repeats + 3):
        for function, taken in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat >= 3:  # the first rounds warm up
                taken.append(time.perf_counter() - start)
    return [statistics.median(taken) for taken in times]


def step_times(name: str, repeats: int, device: torch.device) -> Iterator[str]:
    """For each block of the backbone, with random weights: a line with both times and their ratio."""
    backbone = get_backbone(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = backbone.network()
    model = MultiBitModel(network, backbone.blocks, GROUPS.widths).to(device).eval()
    x = torch.randn(IMAGES, *SHAPES[backbone.dataset], generator=torch.Generator().manual_seed(0)).to(device)
    x = x.contiguous(memory_format=memory_format(x))
    method = create("ptmq", {}, GROUPS.widths, GROUPS)
    model.search_steps(x, method.settings.step_size_search)
    yield f"{name}, batch {method.settings.batch_size}, {device.type}, {torch.get_num_threads()} threads"
    yield f"{'unit':12} {'PTMQ step':>10} {'3 FP passes':>12} {'ratio':>6}"
    for number, unit in enumerate(model.units):
        target = propagate(unit, x, FULL_PRECISION)
        if unit.name not in (STEM, HEAD):
            features = Features(x, dict.fromkeys(GROUPS.widths, x), target)
            learner = Learner(unit, method, features, Random(0, number, device))
            plain = plain_passes(unit, features, method.settings.batch_size, 3)
            step, passes = interleaved([learner.step, plain], repeats, device)
            learner.finish()
            yield f"{unit.name:12} {1e3 * step:7.1f} ms {1e3 * passes:9.1f} ms {step / passes:6.2f}"
        x = target
