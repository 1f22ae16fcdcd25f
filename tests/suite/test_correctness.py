"""Which images were classified correctly: kept by every evaluation, small, and the same as what the record counts."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from ptmq.api import load_model
from ptmq.cli import main
from ptmq.suite import run_record
from ptmq.suite.calibration import calibrate, open_images
from ptmq.suite.profile import Run

CPU = torch.device("cpu")
GROUPS = {"low": ["W3A3"], "medium": ["W5A5"], "high": ["W8A8"]}
WIDTHS = ("W3A3", "W5A5", "W8A8")
RUN = Run("p", "digits", "digits_resnet", "nearest_mse", "default", WIDTHS, GROUPS, seed=0, calibration_images=64)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory) -> Path:
    """A folder with weights, a calibrated model, and the records of both."""
    out = tmp_path_factory.mktemp("evaluated")
    weights = out / "w.safetensors"
    assert main(["train", "--backbone", "digits_resnet", "--set", "epochs=2", "--out", str(weights)]) == 0
    calibrate(RUN, weights, None, out / "model", CPU)
    assert main(["evaluate", "--model", str(out / "model"), "--out", str(out / "quantized.json")]) == 0
    fp = ["evaluate", "--weights", str(weights), "--backbone", "digits_resnet", "--out", str(out / "fp.json")]
    assert main(fp) == 0
    return out


@pytest.mark.parametrize("name", ["quantized", "fp"])
def test_the_bits_are_what_the_record_counts(evaluated, name):
    record = json.loads((evaluated / f"{name}.json").read_text())
    path = evaluated / f"{name}.correct.safetensors"
    assert hashlib.sha256(path.read_bytes()).hexdigest() == record["sha256"]["correct"]
    bits = load_file(path)
    assert list(bits) == sorted(line["width"] for line in record["results"])
    for line in record["results"]:
        assert bits[line["width"]].dtype == np.uint8 and len(bits[line["width"]]) == -(-line["images"] // 8)
        assert np.unpackbits(bits[line["width"]], count=line["images"]).sum() == line["correct"]


def test_every_image_is_in_its_place(evaluated):
    model, _ = load_model(evaluated / "model")
    images, _ = open_images("digits_resnet", "test", None)
    x, y = images.batch(torch.arange(len(images)))
    bits = load_file(evaluated / "quantized.correct.safetensors")
    for width in model.widths:
        model.set_bits(width.weight, width.activation)
        with torch.no_grad():
            expected = model(x).argmax(1) == y
        assert np.array_equal(np.unpackbits(bits[str(width)], count=len(images)).astype(bool), expected.numpy())


def test_the_same_evaluation_gives_the_same_file(evaluated):
    again = evaluated / "again.json"
    assert main(["evaluate", "--model", str(evaluated / "model"), "--out", str(again)]) == 0
    files = [evaluated / f"{name}.correct.safetensors" for name in ("quantized", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_mode_has_a_name_of_its_own():
    line = {"width": "W3A3", "mode": "truncated"}
    assert run_record.key(line) == "W3A3+truncated" and run_record.key({"width": "W3A3"}) == "W3A3"


def test_packing_loses_nothing():
    correct = torch.rand(37, generator=torch.Generator().manual_seed(0)) < 0.5
    assert np.array_equal(np.unpackbits(run_record.packed(correct).numpy(), count=37).astype(bool), correct.numpy())


def test_the_record_says_what_machine_it_was_and_what_else_that_did(evaluated):
    record = json.loads((evaluated / "quantized.json").read_text())
    machine, cost = record["environment"], record["cost"]
    assert {"cpu", "cores", "threads", "torch", "torchvision", "timm", "numpy"} <= set(machine)
    assert machine["cpu"] and machine["cores"] >= 1
    assert cost["load_start"] >= 0 and cost["load_end"] >= 0
