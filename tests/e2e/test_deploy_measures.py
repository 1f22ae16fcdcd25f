"""The figures of merit of an exported file: they hold together, and name what they are of."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

import ptmq
from ptmq.cli import main
from ptmq.common.errors import InputError
from ptmq.common.files import save_tensors
from ptmq.models.backbone import get_backbone
from ptmq.suite.deploy.latency import WARM_UP, interleaved, switching


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A digits network with random weights, calibrated, saved and exported by the command line: its folder, its FP weights."""
    folder = tmp_path_factory.mktemp("deploy")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = get_backbone("digits_resnet").network()
    save_tensors(folder / "fp.safetensors", network.state_dict(), {"backbone": "digits_resnet"})
    command = ["--backbone", "digits_resnet", "--method", "nearest_mse", "--widths", "W4A4..W5A5", "--target", "onnx"]
    more = ["--weights", str(folder / "fp.safetensors"), "--calibration-images", "16", "--out", str(folder / "model")]
    assert main(["quantize", *command, *more]) == 0
    assert main(["export", "--model", str(folder / "model"), "--out", str(folder / "model.onnx")]) == 0
    return folder


@pytest.fixture(scope="module")
def record(files):
    command = ["deploy", "--model", str(files / "model"), "--file", str(files / "model.onnx"), "--repeats", "2"]
    assert main([*command, "--weights", str(files / "fp.safetensors"), "--out", str(files / "deploy.json")]) == 0
    return json.loads((files / "deploy.json").read_text())


def test_the_file_gives_what_the_model_gives(record):
    assert [line["width"] for line in record["results"]] == ["W4A4", "W5A5"]
    for line in record["results"]:
        assert line["images"] == line["model"]["images"] >= line["simulation"]["images"] > 0
        assert abs(line["simulation"]["top1"] - line["top1"]) <= 100 - line["simulation"]["equal"]
        assert line["simulation"]["equal"] >= 99 and line["model"]["equal"] >= 98
        assert abs(line["top1"] - line["model_top1"]) <= 100 - line["model"]["equal"]


def test_sizes_are_of_the_files(record, files):
    size = record["size"]
    assert size["bytes"] == (files / "model.onnx").stat().st_size < size["fp32_bytes"]
    weights = sum(layer.shape.numel() for layer in ptmq.load(files / "model").layers)
    assert size["bits_per_weight"] == pytest.approx(8 * size["bytes"] / weights, abs=1e-3)


def test_integer_kernels_run_at_every_width(record):
    kernels = record["kernels"]
    assert kernels["integer"]["QLinearConv"] >= 13 * kernels["branches"] and record["floats"] == []
    assert "Conv" not in kernels["float"]


def test_latency_is_of_every_width_and_of_fp32(record):
    for times in record["latency"].values():
        assert {*times} == {"W4A4", "W5A5", "fp32", "switching"}
        assert all(0 < times[name]["low"] <= times[name]["median"] <= times[name]["high"] for name in ("W4A4", "fp32"))
    assert record["environment"]["vnni"] in (True, False, None) and record["environment"]["onnxruntime"]


def test_cases_take_turns():
    order: list[str] = []
    found = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 4)
    assert order == ["a", "b"] * (WARM_UP + 4) and {*found} == {"a", "b"}


def test_opening_is_of_a_process_of_its_own(record):
    for taken in record["opening"].values():
        assert taken["ms"] > 0 and taken.get("peak_mib", 1) >= taken.get("mib", 1) > 0
        assert taken.get("peak_mib", 1) < 100, "torch is not in it"


def test_switching_calls_the_same_twice_and_others_in_turn():
    order: list[int] = []
    switching([lambda x, n=n: order.append(n) for n in range(3)], np.zeros(1), 3)
    same = 2 * (WARM_UP + 3)
    assert all(order[i] == order[i + 1] for i in range(0, same, 2)) and {*order[:same]} == {0, 1, 2}
    rest = order[same:]
    assert all(a != b for a, b in pairwise(rest)) and len(rest) == WARM_UP + 6


def test_a_command_without_a_file_is_told(capsys):
    assert main(["deploy", "--model", "x", "--out", "y"]) == 2
    assert "--file, --weights are missing" in capsys.readouterr().err


def test_bytes_need_a_registered_backbone(tmp_path):
    from ptmq.suite.deploy.files import export_folder
    from tests.toys import toy_network

    ptmq.save(ptmq.convert(toy_network(), torch.randn(2, 2, 6, 6), "W4A4"), tmp_path / "model")
    with pytest.raises(InputError, match="is no registered backbone"):
        export_folder(tmp_path / "model", tmp_path / "x.onnx", None, True)


@pytest.mark.parametrize("dtype, takes_bytes", [(torch.uint8, True), (torch.float32, False)])
def test_a_file_takes_bytes_where_the_dataset_has_them(files, tmp_path, monkeypatch, dtype, takes_bytes):
    from ptmq.data import datasets
    from ptmq.data.images import ImagesInMemory
    from ptmq.export.session import Deployed

    stored = ImagesInMemory(torch.zeros(3, 1, 8, 8, dtype=dtype), torch.zeros(3), (0.5,), (0.5,))
    monkeypatch.setattr(datasets, "load", lambda *args: stored)
    assert main(["export", "--model", str(files / "model"), "--as-stored", "--out", str(tmp_path / "x.onnx")]) == 0
    assert Deployed(tmp_path / "x.onnx").takes_bytes == takes_bytes


def test_as_stored_needs_a_dataset():
    from ptmq.suite.deploy.files import stored_as_bytes

    with pytest.raises(InputError, match="which this model does not name"):
        stored_as_bytes(None, None)
