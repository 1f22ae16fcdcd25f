"""The bench: what its records hold. Compiled kernels take their time (tests/e2e)."""

import json

import pytest
import torch

from ptmq.cli import main
from ptmq.suite.bench import blocks, calibrations, models
from ptmq.suite.bench.cases import lines
from ptmq.suite.bench.networks import GROUPS
from tests.toys import CPU


def test_a_switch_is_measured_with_and_without_preparation(tmp_path):
    out = tmp_path / "record.json"
    assert main(["bench", "--case", "switching", "--out", str(out)]) == 0
    measured = json.loads(out.read_text())
    assert 0 < measured["prepared_ms"] < measured["unprepared_ms"]
    assert measured["prepared_mib"] > 5 * measured["fp_mib"], "the weights of six widths"


def test_a_block_is_measured_beside_its_plain_passes():
    unit, features = blocks.block_of("resnet20-stage3", CPU)
    assert unit.name == "layer3.1" and features.fp.shape[1:] == (64, 8, 8)
    runs = [blocks.plain_passes(unit, features, 4, 1), blocks.Iterations(unit, features, "ptmq")]
    plain, learned = (min(taken) for taken in blocks.interleaved(runs, 3, CPU))
    assert 0 < plain < learned, "three widths forward and backward against one"
    assert not any(layer.weight.requires_grad or layer.weight.grad is not None for layer in unit.layers)
    shares = blocks.operators(runs[1], CPU)
    assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)


def test_iterations_of_two_methods_share_a_block():
    unit, features = blocks.block_of("resnet20-stage3", CPU)
    first, second = (blocks.Iterations(unit, features, name) for name in ("qdrop", "ptmq"))
    before = [parameter.clone() for parameter in first.relaxations[0].parameters()]
    second()
    assert all(torch.equal(p, b) for p, b in zip(first.relaxations[0].parameters(), before, strict=True))
    first()
    assert not torch.equal(next(first.relaxations[0].parameters()), before[0])


def test_files_of_a_network_are_measured_beside_fp32(monkeypatch):
    monkeypatch.setattr(models, "EXPORT_BATCHES", (1, 2))
    record = models.exported("onnx-digits_resnet", 2, CPU)
    assert 0 < record["size"]["bytes"] < record["size"]["fp32_bytes"] and record["floats"] == []
    columns = {"fp32", *map(str, GROUPS.widths)}
    assert {count: set(times) for count, times in record["latency"].items()} == {1: columns, 2: columns}
    assert all(0 < taken["low"] <= taken["median"] for times in record["latency"].values() for taken in times.values())
    assert any(line.startswith("ms, batch 2") for line in lines(record))


def test_hours_at_the_published_iterations_come_from_two_short_calibrations(monkeypatch):
    monkeypatch.setattr(calibrations, "FEW_IMAGES", 8)
    record = calibrations.whole("calibration-digits_resnet", 1, CPU)
    line = {n: record["seconds_besides"] + n * record["seconds_an_iteration"] for n in (1, 5, record["iterations"])}
    assert line == pytest.approx({**record["seconds"], record["iterations"]: 3600 * record["hours"]})
    assert record["iterations"] == 20_000 and record["images"] == 8
    assert any(text.startswith("hours") for text in lines(record))
