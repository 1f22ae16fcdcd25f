"""Training and calibration as stages: determinism, what is recorded, what is taken up after an interruption."""

import json
from dataclasses import fields, replace

import pytest
import torch

from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, sha256
from ptmq.methods.interface import METHODS, create
from ptmq.suite import calibration
from ptmq.suite.calibration import calibrate, calibration_index, code_sha256, execution_of, method_of
from ptmq.training import trainer
from ptmq.training.floating_point import train_backbone
from tests.toys import CPU


def described(folder) -> dict:
    return json.loads((folder / "model.json").read_text())


def test_training_is_deterministic(weights, tmp_path):
    state = torch.random.get_rng_state()
    again = tmp_path / "again.safetensors"
    train_backbone("digits_resnet", {"epochs": 3}, 0, None, again, CPU)
    assert again.read_bytes() == weights.read_bytes()
    assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"
    assert list(tmp_path.iterdir()) == [again], "the checkpoint of the training is removed"


def test_another_seed_trains_another_network(weights, tmp_path):
    train_backbone("digits_resnet", {"epochs": 1}, 1, None, tmp_path / "w.safetensors", CPU)
    one, two = (load_tensors(path)[0]["conv1.weight"] for path in (weights, tmp_path / "w.safetensors"))
    assert not torch.equal(one, two)


def test_the_same_run_gives_the_same_model(calibrated, weights, make_run, tmp_path):
    calibrate(make_run("ptmq", iterations=4), weights, None, tmp_path, CPU)
    one, two = described(calibrated), described(tmp_path)
    assert one.pop("cost").keys() == two.pop("cost").keys() and one == two
    assert (calibrated / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"model.json", "model.safetensors"}


def test_the_description_says_what_was_asked_and_with_what(calibrated, weights, make_run):
    said, run = described(calibrated), make_run("ptmq", iterations=4)
    assert said["run"]["method"] == "ptmq" and said["run"]["settings"] == {"iterations": 4}
    assert said["protocol"]["iterations"] == 4 and said["protocol"]["edge_bits"] == 8
    assert said["protocol"].keys() >= {field.name for field in fields(method_of(run).settings)}, (
        "every setting, also defaults"
    )
    assert said["sha256"]["weights"] == sha256(weights) and said["code_sha256"] == code_sha256(
        method_of(run), run.backbone
    )
    assert said["cost"]["images"] == 64 and said["cost"]["seconds"] > 0 and said["cost"]["peak_mb"] > 50
    assert [unit["unit"] for unit in said["units"]][::7] == ["stem", "head"]
    assert {"python", "torch", "device", "threads"} <= set(said["environment"]) and said["commit"]


def test_calibration_images_are_drawn_by_the_seed(make_run):
    run = make_run("nearest_mse")
    index = calibration_index(1000, run)
    assert len(index.unique()) == run.calibration_images == 64
    assert torch.equal(index, calibration_index(1000, run))
    assert not torch.equal(index, calibration_index(1000, replace(run, seed=1)))
    more = calibration_index(1000, replace(run, calibration_images=100))
    assert torch.equal(more[:64], index), "more images are the same and others"


@pytest.mark.parametrize("changes, message", [
    ({"calibration_images": 1001}, "at most the 1000 training images of 'digits'. Got 1001"),
    ({"execution": {"compil": True}}, "execution: setting 'compil' is unknown. Did you mean 'compile'"),
    ({"execution": {"autocast": 1}}, "execution: setting 'autocast' must be bool"),
    ({"method": "qdrop"}, "qdrop calibrates one width at a time"),
])  # fmt: skip
def test_what_a_run_cannot_ask_is_said(weights, make_run, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        calibrate(replace(make_run("nearest_mse"), **changes), weights, None, tmp_path, CPU)
    assert not list(tmp_path.iterdir())


def test_the_execution_of_a_run_is_off_unless_it_is_asked_for(make_run):
    plain, halved = make_run("ptmq"), replace(make_run("ptmq"), execution={"autocast": True})
    assert not any(vars(execution_of(plain)).values()) and execution_of(halved).autocast


def test_code_that_calibrates_is_told_apart_by_method_and_network():
    hashes = {
        code_sha256(create(name, {}, ["W4A4"] if METHODS[name].per_width else ["W3A3", "W4A4"]), backbone)
        for name in ("qdrop", "nearest_mse", "multiquant")
        for backbone in ("digits_resnet", "digits_vit")
    }
    assert len(hashes) == 6


def few_training_images(monkeypatch) -> None:
    """256 of the digits instead of 1,000."""
    opened = calibration.open_images

    def few(*args):
        images, hashes = opened(*args)
        images.images, images.labels = images.images[:256], images.labels[:256]
        return images, hashes

    monkeypatch.setattr(calibration, "open_images", few)


class Interrupted(Exception):
    """Raised in the middle of a stage."""


def test_a_calibration_continues_only_from_its_own_unfinished_state(weights, make_run, tmp_path, monkeypatch):
    run, saves = make_run("qdrop", iterations=3), []
    run = replace(run, widths=("W3A3",), label="W3A3")
    calibrate(run, weights, None, tmp_path / "whole", CPU)
    save = calibration.ResumeFile.save

    def saved(resume, model, units, *more):
        save(resume, model, units, *more)
        saves.append(len(units))
        if len(saves) == 3:
            raise Interrupted

    monkeypatch.setattr(calibration.ResumeFile, "save", saved)
    with pytest.raises(Interrupted):
        calibrate(run, weights, None, tmp_path / "parts", CPU)
    (unfinished,) = (tmp_path / "parts").glob("unfinished-*")
    content = unfinished.read_bytes()
    other = replace(run, settings={"iterations": 2})
    calibrate(other, weights, None, tmp_path / "parts", CPU)
    assert saves[3:5] == [1, 2], "another run begins anew"
    assert not list((tmp_path / "parts").glob("unfinished-*")), "and clears up"
    unfinished.write_bytes(content)
    del saves[3:]
    calibrate(run, weights, None, tmp_path / "parts", CPU)
    assert saves[3] == 4, "the same run continues"
    one, two = ((tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts"))
    assert one == two


def test_a_training_with_labels_continues_to_the_identical_result(weights, make_run, tmp_path, monkeypatch):
    run = make_run("robustquant", epochs=2)
    few_training_images(monkeypatch)
    calibrate(run, weights, None, tmp_path / "whole", CPU)
    save, lengths = trainer.State.save, []

    def saved(state):
        save(state)
        lengths.append(len(state.curve))
        if lengths == [1]:
            raise Interrupted

    monkeypatch.setattr(trainer.State, "save", saved)
    with pytest.raises(Interrupted):
        calibrate(run, weights, None, tmp_path / "parts", CPU)
    assert list((tmp_path / "parts").glob("unfinished*.pt"))
    calibrate(run, weights, None, tmp_path / "parts", CPU)
    assert lengths == [1, 2]
    one, two = ((tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts"))
    assert one == two
