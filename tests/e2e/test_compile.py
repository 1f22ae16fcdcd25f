"""torch.compile: the same numbers, the benchmark's record, and a machine without a compiler."""

import json
import math
import os
import subprocess
import sys

import pytest

from ptmq.cli import main
from ptmq.common.files import save_tensors
from ptmq.models.zoo import BACKBONES
from tests.quantization.test_fake_quantization import check_backward, check_bounds
from tests.toys import ROOT, needs_compiler, random_network


@needs_compiler
@pytest.mark.parametrize("bits, dropped, channels_last", [(2, False, False), (3, True, True), (8, True, False)])
def test_the_compiled_backward_equals_autograd(bits, dropped, channels_last):
    check_backward(bits, dropped, channels_last, compiled=True)


@needs_compiler
@pytest.mark.parametrize("name, bounds", [("relu", (0.0, math.inf)), ("relu6", (0.0, 6.0))])
def test_compiled_bounds_are_the_activation_function_before(name, bounds):
    check_bounds(name, bounds, dropped=True, compiled=True)


@needs_compiler
def test_the_benchmark_compares_iterations_with_plain_passes(tmp_path, capsys):
    out = tmp_path / "record.json"
    assert main(["bench", "--case", "resnet20-stage3", "--repeats", "2", "--out", str(out)]) == 0
    measured = json.loads(out.read_text())
    ratios = measured["ratio"]
    assert set(ratios) == {"qdrop", "ptmq", "qdrop_compiled", "ptmq_compiled"}
    for name, ratio in ratios.items():
        plain = measured["ms"]["fp_3" if "ptmq" in name else "fp_1"]
        assert ratio == pytest.approx(measured["ms"][name] / plain) and ratio > 0.5, "the passes are a part of it"
    assert sum(measured["operators"].values()) == pytest.approx(1) and measured["compile_seconds"] > 0
    assert f"{ratios['ptmq']:.2f}" in capsys.readouterr().out


def test_a_machine_without_a_compiler_is_told_of_compile(tmp_path):
    weights = tmp_path / "w.safetensors"
    save_tensors(weights, random_network(BACKBONES["digits_resnet"].network).state_dict(), None)
    command = [sys.executable, "-m", "ptmq", "quantize", "--profile", "workflow/config/digits.yaml", "--backbone",
               "digits_resnet", "--method", "ptmq", "--set", "iterations=1", "--compile", "--weights", str(weights),
               "--out", str(tmp_path / "model")]  # fmt: skip
    nothing = os.environ | {"CXX": "/no/compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=nothing)
    assert done.returncode == 2 and "ptmq: compile: true, but torch.compile fails" in done.stderr
    assert "Set compile: false." in done.stderr and "Traceback" not in done.stderr
