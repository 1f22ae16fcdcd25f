"""The command line as a person uses it: a run by hand, overrides, lists."""

import json
from dataclasses import fields

import pytest

from ptmq.cli import main, overrides
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors
from ptmq.methods.interface import METHODS
from tests.toys import ROOT

PROFILE = str(ROOT / "workflow/config/digits.yaml")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "w.safetensors"
    assert main(["train", "--backbone", "digits_resnet", "--set", "epochs=1", "--out", str(path)]) == 0
    return path


def test_a_person_can_calibrate_by_hand(weights, tmp_path, capsys):
    out, record = tmp_path / "model", tmp_path / "r.json"
    asked = ["--profile", PROFILE, "--backbone", "digits_resnet", "--method", "ptmq", "--seed", "3"]
    settings = ["--set", "iterations=2", "--set", "mfm=1", "--autocast"]
    assert main(["quantize", *asked, *settings, "--weights", str(weights), "--out", str(out)]) == 0
    assert main(["evaluate", "--model", str(out), "--split", "heldout", "--out", str(record)]) == 0
    assert "of 200 heldout images" in capsys.readouterr().out
    said = json.loads(record.read_text())
    assert said["protocol"]["mfm"] == "1" and said["protocol"]["iterations"] == 2
    assert said["run"]["seed"] == 3 and said["run"]["execution"] == {"autocast": True}


def test_what_is_trained_says_how(weights):
    _, info = load_tensors(weights)
    assert info["backbone"] == "digits_resnet" and info["training"]["epochs"] == 1 and info["seed"] == 0


@pytest.mark.parametrize("argv, message", [
    (["--method", "lsq"], "profile digits: method 'lsq' is unknown. Known: adaptive_bn, adaround, any_precision,"),
    (["--method", "ptmq", "--width", "W4A4"], "Choose one of: --variant default --width multi."),
    (["--method", "qdrop"], "2 runs of qdrop on digits_resnet"),
])  # fmt: skip
def test_a_run_that_the_profile_lacks_is_said(argv, message, capsys):
    asked = ["--profile", PROFILE, "--backbone", "digits_resnet", "--weights", "w", "--out", "x"]
    assert main(["quantize", *asked, *argv]) == 2
    assert message in capsys.readouterr().err


def test_overrides_are_read_as_yaml():
    assert overrides(["a=3", "b=[1, 2]", "c=none", "d=true", "e=1e-3"]) == {
        "a": 3, "b": [1, 2], "c": "none", "d": True, "e": "1e-3"}  # fmt: skip
    with pytest.raises(InputError, match="--set needs KEY=VALUE. Got 'a'."):
        overrides(["a"])


def test_methods_are_listed_with_their_settings(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    for name, method in METHODS.items():
        assert f"\n{name} " in f"\n{said}" and (method.__doc__ or "").splitlines()[0] in said
        assert all(f"{field.name}=" in said for field in fields(method.Settings))


def test_check_counts_the_runs_of_a_profile(capsys):
    assert main(["check", "--profile", PROFILE]) == 0
    said = capsys.readouterr().out
    assert said.endswith("runs, no mistakes\n") and int(said.split()[0]) > 10
