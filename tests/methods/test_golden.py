"""One tiny calibration of every method gives the numbers that it gave before: who changes a result must say so.

After a change that is meant, this writes tests/vectors/golden.json anew: python -m tests.methods.test_golden
"""

import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from torch import nn

from ptmq.data.images import ImagesInMemory
from ptmq.methods.interface import METHODS, Task, create, discover
from ptmq.methods.label_training import TrainedMethod
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.model import MultiBitModel
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.quantization.weight_quantizer import GridWeightQuantizer
from ptmq.reconstruction.engine import ResumeFile
from tests.toys import CPU, GROUPS, VECTORS, W3, W4, toy_network

PATH = VECTORS / "golden.json"
COMMAND = "python -m tests.methods.test_golden"
TOLERANCE = 5e-3  # other CPUs and kernels move a value by up to 3e-3, the small changes below by more than this
QUICK = {"iterations": 7, "batch_size": 8}
VARIANTS = {  # beside the defaults of every method
    "brecq": [{"fisher": True}],
    "qdrop": [{"step_size_search": "shift", "edge_bits": 4}],
    "flexround": [{"setting": "brecq", "keep": 1.0}],
    "ptmq": [
        {"mfm": "1", "gd": "figure1"},
        {"mfm": "2", "gd": "none"},
        {"mfm": "none", "shared_rounding": False},
        {"edge_bits": 4, "initial_v": "mean"},
    ],
}
discover()
CASES = {
    " ".join([name, *(f"{key}={value}" for key, value in variant.items())]): (name, variant)
    for name in sorted(METHODS)
    for variant in [{}, *VARIANTS.get(name, [])]
}


def images() -> ImagesInMemory:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(48, 2, 6, 6, generator=generator)
    found = ImagesInMemory(x, torch.randint(4, (48,), generator=generator), (0.5, 0.5), (0.2, 0.2))
    found.augmentation = {"shift": 1, "flip": True, "border": "black"}
    return found


def numbers(name: str, variant: dict, folder) -> dict:
    """What a calibration gives: losses, step sizes and mean codes.

    Of the stem and the first block alone where blocks are learned one after the other: rounding errors of another CPU
    change a code here and there, and the blocks behind see another input. What reaches a block is in its losses.
    """
    cls = METHODS[name]
    trained = issubclass(cls, TrainedMethod)
    quick = {"epochs": 2} if trained else QUICK if issubclass(cls, Reconstruction) else {}
    widths = [W3 if "step_size_search" in variant else W4] if cls.per_width else list(GROUPS.widths)
    method = create(name, {**quick, **variant}, widths, GROUPS)
    if trained:
        method.schedules = {key: replace(value, batch_size=16) for key, value in method.schedules.items()}
    resume = ResumeFile(folder / "unfinished.safetensors")
    task = Task(toy_network(), ["blocks.*"], images(), torch.arange(32), 3, CPU, resume, name)
    model, details = method.fit(task)
    parts = nn.ModuleList(model.units[:2]) if isinstance(model, MultiBitModel) else model
    layers = [m for m in parts.modules() if isinstance(getattr(m, "quantizer", None), GridWeightQuantizer)]
    quantizers = [m for m in parts.modules() if isinstance(m, ActivationQuantizer)]
    learned = [unit for unit in details["units"] if unit["unit"].startswith(("stem", "blocks.0"))]
    return {
        "losses": [short(unit["loss"]) for unit in [*learned, details.get("training", {"loss": []})]],
        "step sizes": [short(step.item() for step in quantizer.step.values()) for quantizer in quantizers],
        "mean codes": [
            short(float(m.quantizer.codes(m.weight, b).double().mean()) for b in m.quantizer.widths) for m in layers
        ],
    }


def short(values) -> list[float]:
    """Six digits of each."""
    return [float(f"{value:.6g}") for value in values]


def differences(found: dict, expected: dict) -> list[str]:
    """What differs by more than TOLERANCE of the largest value of its list."""
    told = []
    for kind, lists in expected.items():
        if [len(values) for values in found[kind]] != [len(values) for values in lists]:
            told.append(f"{kind}: other lengths")
            continue
        for number, (now, before) in enumerate(zip(found[kind], lists, strict=True)):
            scale = max(map(abs, before), default=0.0)
            worst = max((abs(a - b) for a, b in zip(now, before, strict=True)), default=0.0)
            if worst > TOLERANCE * scale:
                told.append(f"{kind} {number}: {now}, before {before}")
    return told


@pytest.mark.parametrize("case", CASES)
def test_results_are_those_of_before(case, tmp_path):
    expected = json.loads(PATH.read_text())
    assert case in expected, f"{case!r} is new. Write it down: {COMMAND}"
    told = differences(numbers(*CASES[case], tmp_path), expected[case])
    assert not told, "\n".join([f"results changed. If that is meant, say so in the commit and run: {COMMAND}", *told])


def test_nothing_is_written_down_that_is_no_case():
    assert set(json.loads(PATH.read_text())) == set(CASES), f"run: {COMMAND}"


@pytest.mark.parametrize("change", [
    {"lr_rounding": 0.14}, {"lr_step_size": 0.0022}, {"keep": 0.45}, {"beta_start": 4.0, "regularizer": 0.05},
    {"warmup": 0.9, "regularizer": 0.05}, {"batch_size": 9}, {"iterations": 8}, {"step_size_images": 16},
    {"initial_v": "zero"},
])  # fmt: skip
def test_a_small_change_of_a_method_is_seen(change, tmp_path):
    expected = json.loads(PATH.read_text())["ptmq"]
    assert differences(numbers("ptmq", change, tmp_path), expected)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        found = {case: numbers(*CASES[case], Path(folder) / case) for case in CASES}
    PATH.write_text("{\n" + ",\n".join(f"{json.dumps(case)}: {json.dumps(found[case])}" for case in CASES) + "\n}\n")
