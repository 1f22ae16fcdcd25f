"""Training, calibration and evaluation as stages: determinism, and that a record says what was measured."""

import json

import pytest
import torch
from conftest import ROOT, needs_compiler

from ptmq.cli import main
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors
from ptmq.models.backbone import Training
from ptmq.network.serialization import load_model
from ptmq.suite.calibration import calibrate, open_images
from ptmq.suite.evaluation import evaluate_fp, evaluate_model
from ptmq.suite.profile import Run
from ptmq.training import trainer as training
from ptmq.training.augmentation import shifted

CPU = torch.device("cpu")
RUN = Run("p", "digits", "digits_resnet", "ptmq", "default", ("W3A3", "W5A5", "W8A8"),
          {"low": ["W3A3"], "medium": ["W5A5"], "high": ["W8A8"]}, 0, {"steps": 4}, 64)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("fp") / "w.safetensors"
    assert main(["train", "--backbone", "digits_resnet", "--set", "epochs=4", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    calibrate(RUN, weights, None, out, CPU)
    return out


def test_training_is_deterministic_and_learns(weights, tmp_path):
    state = torch.random.get_rng_state()
    again = tmp_path / "again.safetensors"
    main(["train", "--backbone", "digits_resnet", "--set", "epochs=4", "--out", str(again)])
    one, two = load_tensors(weights)[0], load_tensors(again)[0]
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"
    assert evaluate_fp("digits_resnet", weights, "heldout", None, None, CPU)["fp_top1"] > 80


def test_the_learning_rate_warms_up_and_falls_to_zero():
    settings = Training(lr=1.0, warmup=0.1)
    rates = [training.learning_rate(step, 100, settings) for step in range(100)]
    assert rates[:10] == pytest.approx([i / 10 for i in range(1, 11)])
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] < 0.01


@pytest.mark.parametrize(("border", "padding"), [("black", {"value": -9.0}), ("edge", {"mode": "replicate"})])
def test_shifts_move_whole_images(border, padding):
    x = torch.arange(2 * 1 * 4 * 4.0).view(2, 1, 4, 4)
    black = torch.tensor([-9.0]).view(1, 1, 1)
    assert torch.equal(shifted(x, 0, border, black, torch.Generator()), x)
    moved = shifted(x, 1, border, black, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    for image, original in zip(moved, x, strict=True):
        padded = torch.nn.functional.pad(original[None], [1] * 4, **padding)[0]
        crops = [padded[:, d : d + 4, r : r + 4] for d in range(3) for r in range(3)]
        assert any(torch.equal(image, crop) for crop in crops)


def test_the_same_run_gives_the_same_record(folder, weights, tmp_path):
    calibrate(RUN, weights, None, tmp_path, CPU)
    one, two = (json.loads((path / "model.json").read_text()) for path in (folder, tmp_path))
    one.pop("cost"), two.pop("cost")
    assert one == two
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert not list(tmp_path.glob("unfinished*"))


def test_the_record_says_what_was_measured(folder):
    record = evaluate_model(folder, "test", None, None, CPU)
    model, _ = load_model(folder)
    images, _ = open_images("digits_resnet", "test", None)
    x, y = images.batch(torch.arange(len(images)))
    with torch.no_grad():
        fp = model(x).log_softmax(1)
        for line in record["results"]:
            model.set_bits(line["w_bits"], line["a_bits"])
            log_p = model(x).log_softmax(1)
            assert line["correct"] == int((log_p.argmax(1) == y).sum()) and line["images"] == 597
            assert line["top1"] == pytest.approx(100 * line["correct"] / 597, abs=1e-3)
            assert line["kl"] == pytest.approx(float((fp.exp() * (fp - log_p)).sum(1).mean()), abs=1e-4)
    assert record["fp_top1"] == pytest.approx(100 * float((fp.argmax(1) == y).float().mean()), abs=1e-3)
    assert [line["width"] for line in record["results"]] == ["W3A3", "W5A5", "W8A8"]
    assert record["protocol"]["steps"] == 4 and record["protocol"]["edge_bits"] == 8
    assert {"weights", "data", "model"} <= set(record["sha256"]) and record["cost"]["peak_mb"] > 50


def test_changed_code_does_not_take_up_an_unfinished_run():
    from ptmq.methods.interface import METHODS, discover
    from ptmq.suite import run_record as record

    discover()
    assert record.code_hash(METHODS["ptmq"]) != record.code_hash(METHODS["qdrop"])


def test_more_calibration_images_than_there_are_is_said(weights, tmp_path):
    from dataclasses import replace

    with pytest.raises(
        InputError, match="calibration_images must be at most the 1000 training images of 'digits'. Got 1001"
    ):
        calibrate(replace(RUN, calibration_images=1001), weights, None, tmp_path, CPU)


def test_weights_of_another_backbone_are_said(weights, tmp_path, capsys):
    assert main(["evaluate", "--weights", str(weights), "--backbone", "digits_vit", "--out", str(tmp_path / "r")]) == 2
    assert "They belong to another architecture" in capsys.readouterr().err


def test_a_person_can_calibrate_by_hand(weights, tmp_path, capsys):
    out = tmp_path / "model"
    assert main(["quantize", "--profile", str(ROOT / "workflow/config/digits.yaml"), "--backbone", "digits_resnet",
                 "--method", "ptmq", "--set", "steps=2", "--set", "mfm=1", "--weights", str(weights), "--out", str(out)]) == 0  # fmt: skip
    assert main(["evaluate", "--model", str(out), "--split", "heldout", "--out", str(tmp_path / "r.json")]) == 0
    assert "of 200 heldout images" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["protocol"]["mfm"] == "1"


@needs_compiler
def test_the_benchmark_compares_steps_with_plain_passes(tmp_path, capsys):
    out = tmp_path / "record.json"
    assert main(["bench", "--case", "resnet20-stage3", "--repeats", "2", "--out", str(out)]) == 0
    measured = json.loads(out.read_text())
    assert set(measured["ratio"]) == {"qdrop", "ptmq", "qdrop_compiled", "ptmq_compiled"}
    assert all(ratio > 0 for ratio in measured["ratio"].values())
    assert sum(measured["operators"].values()) == pytest.approx(1)
    assert "ratio" in capsys.readouterr().out


def test_a_switch_is_measured_with_and_without_preparation(tmp_path):
    out = tmp_path / "record.json"
    assert main(["bench", "--case", "switching", "--out", str(out)]) == 0
    measured = json.loads(out.read_text())
    assert 0 < measured["prepared_ms"] < measured["unprepared_ms"] and measured["prepared_mib"] > measured["fp_mib"]


def test_every_block_kind_of_the_benchmark_has_its_jobs():
    from ptmq.suite.bench import BLOCKS

    rules = (ROOT / "workflow/rules/bench.smk").read_text()
    assert all(f'"{case}",' in rules for case in BLOCKS)


def test_tensors_round_trip_with_their_info(tmp_path):
    save_tensors(tmp_path / "t", {"a": torch.arange(6).view(2, 3).T}, {"b": [1]})
    tensors, info = load_tensors(tmp_path / "t")
    assert torch.equal(tensors["a"], torch.arange(6).view(2, 3).T) and info == {"b": [1]}
