"""Evaluation: a record says what was measured, at every width and in every mode."""

import json
from pathlib import Path

import pytest
import torch

from ptmq.api import load_model
from ptmq.common.errors import InputError
from ptmq.common.files import sha256
from ptmq.data.datasets import open_images
from ptmq.suite.calibration import calibrate
from ptmq.suite.evaluation import code_of_record, evaluate_fp, evaluate_model, load_outputs
from ptmq.suite.run_record import peak_mb, result
from tests.toys import CPU, W3

TRAINED = ["any_precision", "multiquant", "robustquant"]


@torch.no_grad()
def test_the_record_says_what_was_measured(calibrated):
    record = evaluate_model(calibrated, "test", None, None, CPU)
    model, _ = load_model(calibrated)
    images, _ = open_images("digits_resnet", "test", None)
    x, y = images.batch(torch.arange(len(images)))
    fp = model(x).log_softmax(1)
    for line in record["results"]:
        model.set_bits(line["w_bits"], line["a_bits"])
        log_p = model(x).log_softmax(1)
        assert line["correct"] == int((log_p.argmax(1) == y).sum()) and line["images"] == 597
        assert line["top1"] == pytest.approx(100 * line["correct"] / 597, abs=1e-3)
        assert line["kl"] == pytest.approx(float((fp.exp() * (fp - log_p)).sum(1).mean()), abs=1e-4)
    assert record["fp_top1"] == pytest.approx(100 * float((fp.argmax(1) == y).float().mean()), abs=1e-3)
    assert [line["width"] for line in record["results"]] == ["W3A3", "W5A5", "W8A8"]
    assert record["sha256"]["model"] == sha256(calibrated / "model.safetensors")


def test_the_fp_record_is_of_the_network_that_learned(weights, fp_outputs):
    records = {split: evaluate_fp("digits_resnet", weights, split, None, None, CPU) for split in ("heldout", "test")}
    assert records["heldout"]["fp_top1"] > 80 and records["heldout"]["results"][0]["images"] == 200
    fp = load_outputs(fp_outputs, "digits_resnet", "test")
    images, _ = open_images("digits_resnet", "test", None)
    assert records["test"]["results"][0]["correct"] == int((fp.argmax(1) == images.labels).sum())
    torch.testing.assert_close(fp.exp().sum(1), torch.ones(597))


def test_the_same_model_gives_the_same_results(calibrated, fp_outputs):
    one, two = (evaluate_model(calibrated, "test", fp_outputs, None, CPU)["results"] for _ in range(2))
    assert one == two == json.loads(json.dumps(one))


def test_outputs_that_were_kept_give_the_same_record(calibrated, fp_outputs):
    kept, anew = (evaluate_model(calibrated, "test", outputs, None, CPU) for outputs in (fp_outputs, None))
    for one, two in zip(kept["results"], anew["results"], strict=True):
        assert one["correct"] == two["correct"] and one["kl"] == pytest.approx(two["kl"], abs=2e-5)


def test_outputs_of_another_split_are_refused(calibrated, fp_outputs):
    with pytest.raises(InputError, match="--fp-outputs must be of .*heldout"):
        evaluate_model(calibrated, "heldout", fp_outputs, None, CPU)


def test_the_code_of_a_record_is_that_of_its_calibration_and_of_its_evaluation(calibrated):
    info = json.loads((calibrated / "model.json").read_text())
    record = evaluate_model(calibrated, "heldout", None, None, CPU)
    assert record["code_sha256"] == code_of_record(info["code_sha256"], "ptmq") != info["code_sha256"]
    assert code_of_record("a", "ptmq") != code_of_record("b", "ptmq") != code_of_record("b", "qdrop")


@pytest.mark.parametrize("method", ["adaptive_bn", *TRAINED])
def test_a_model_of_its_own_is_measured_in_every_mode(method, weights, fp_outputs, make_run, tmp_path):
    settings = {"epochs": 1} if method in TRAINED else {}
    calibrate(make_run(method, **settings), weights, None, tmp_path, CPU)
    record = evaluate_model(tmp_path, "test", fp_outputs, None, CPU)
    model, _ = load_model(tmp_path)
    modes = {mode: sum(line.get("mode", "") == mode for line in record["results"]) for mode in model.modes}
    assert modes == dict.fromkeys(["", *model.modes], 3), "all widths in each"
    for line in record["results"]:
        recalibrated = method in ("adaptive_bn", "multiquant") and not line.get("mode")
        assert line.get("switch_images", 0) == (896 if recalibrated else 0), "seven batches of 128"
    if method in TRAINED:
        assert (
            record["cost"]["labels"] == 1000 and record["cost"]["epochs"] == 1 and len(record["training"]["loss"]) == 1
        )
        with pytest.raises(InputError, match="Give --fp-outputs"):
            evaluate_model(tmp_path, "test", None, None, CPU)
    else:
        assert record["cost"]["images"] == 64 and "labels" not in record["cost"]


def test_a_result_is_in_percent_and_nats():
    assert result(W3, torch.tensor([True, False, False]), 0.12345678) == {
        "width": "W3A3", "w_bits": 3, "a_bits": 3, "top1": 33.3333, "kl": 0.123457, "correct": 1, "images": 3}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the peak in a file")
def test_the_peak_is_in_mebibytes():
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    assert peak_mb(CPU) == pytest.approx(int(lines["VmHWM"].split()[0]) / 1024, rel=0.05)
