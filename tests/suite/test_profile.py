"""Profiles, runs, bit-widths and the command line: what is accepted, and what a mistake is told."""

import copy
import json

import pytest
import yaml
from conftest import ROOT

from ptmq.cli import main
from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError
from ptmq.suite.profile import Run, all_runs, read_profile, validate

PROFILES = sorted((ROOT / "workflow" / "config").glob("*.yaml"))
DIGITS = yaml.safe_load((ROOT / "workflow" / "config" / "digits.yaml").read_text())


def changed(path: str, value) -> dict:
    """The digits profile with one entry replaced; a value of ... deletes it."""
    profile = copy.deepcopy(DIGITS)
    *parents, last = path.split("/")
    node = profile
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return profile


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_every_profile_is_valid(path):
    profile = read_profile(path)
    assert profile["profile"] == path.stem and all_runs(profile)


@pytest.mark.parametrize("path, value, message", [
    ("sedes", [0], "top level: key 'sedes' is unknown. Did you mean 'seeds'?"),
    ("seeds", ..., "top level: missing seeds."),
    ("seeds", [], "seeds must be a list of at least 1. Got []."),
    ("seeds", [0, 0], "seeds must be a list without repetition. Got [0, 0]."),
    ("seeds", [-1], "seeds.0 must be 0 or more. Got -1."),
    ("seeds", 0, "seeds must be a list, such as [a, b]. Got 0."),
    ("device", "tpu", "device must be one of auto, cpu, cuda. Got 'tpu'."),
    ("threads", 0, "threads must be 1 or more. Got 0."),
    ("calibration_images", 0, "calibration_images must be 1 or more. Got 0."),
    ("profile", "My Profile", "profile must be written like cifar10. Got 'My Profile'."),
    ("backbones", {}, "backbones must be a mapping of at least 1. Got {}."),
    ("backbones/digits_resnet/groups/low", [], "backbones.digits_resnet.groups.low must be a list of at least 1."),
    ("backbones/digits_resnet/groups/low", ["4bit"], "groups.low.0 must be written like W4A4. Got '4bit'."),
    ("backbones/digits_resnet/groups", {"all": ["W8A8"]}, "backbones.digits_resnet.groups must be a mapping of at least 2."),
    ("methods/ptmq/variants", {"few": {"calibration_images": 0}}, "methods.ptmq.variants.few.calibration_images must be 1 or more. Got 0."),
    ("backbones/digits_resnet/group", {}, "key 'group' is unknown. Did you mean 'groups'?"),
    ("methods/ptmq/setting", {}, "methods.ptmq: key 'setting' is unknown. Did you mean 'settings'?"),
    ("methods/ptmq/backbones", ["digits_resnt"], "methods.ptmq.backbones: backbone 'digits_resnt' is unknown. Did you mean 'digits_resnet'?"),
    ("backbones/digits_resnet/settings", {"ptqm": {"steps": 3}}, "backbones.digits_resnet.settings: method 'ptqm' is unknown. Did you mean 'ptmq'?"),
    ("methods/nearest_mse", {"widths": {"digits_resnt": ["W3A3"]}}, "methods.nearest_mse.widths: backbone 'digits_resnt' is unknown. Did you mean 'digits_resnet'?"),
    ("methods/nearest_mse", {"widths": {"digits_resnet": ["W3"]}}, "methods.nearest_mse.widths.digits_resnet.0 must be written like W4A4. Got 'W3'."),
    ("methods/ptmq/variants", {"once": {"seeds": []}}, "methods.ptmq.variants.once.seeds must be a list of at least 1. Got []."),
    ("methods/ptmq/per_width", "often", "methods.ptmq.per_width must be true or false. Got 'often'."),
])  # fmt: skip
def test_a_wrong_profile_is_one_sentence(path, value, message):
    with pytest.raises(InputError) as error:
        validate(changed(path, value))
    assert message in str(error.value)


@pytest.mark.parametrize("path, value, message", [
    ("methods/ptmq/settings", {"step": 3}, "ptmq: setting 'step' is unknown. Did you mean 'steps'?"),
    ("methods/ptmq/widths", ["W3A3"], "ptmq calibrates the widths of its groups, W3A3, W4A4"),
    ("methods/ptmq/per_width", True, "ptmq calibrates the widths of its groups"),
    ("backbones/digits_resnet/training", {"epoch": 3}, "training of digits_resnet: setting 'epoch' is unknown. Did you mean 'epochs'?"),
    ("methods/ptmg", {}, "method 'ptmg' is unknown. Did you mean 'ptmq'?"),
    ("backbones/digits_restnet", {"groups": DIGITS["backbones"]["digits_resnet"]["groups"]}, "backbone 'digits_restnet' is unknown. Did you mean 'digits_resnet'?"),
    ("backbones/resnet20", {"groups": DIGITS["backbones"]["digits_resnet"]["groups"]}, "backbone 'resnet20' is for dataset 'cifar10'. Got dataset 'digits'."),
    ("backbones/digits_resnet/groups/low", ["W9A9"], "weight bits must be 2..8, or 32 for floating point. Got 9."),
    ("backbones/digits_resnet/groups/low", ["W6A6"], "bit groups must not overlap"),
])  # fmt: skip
def test_check_tells_every_mistake_before_anything_runs(path, value, message, capsys):
    assert main(["check", "--json", json.dumps(changed(path, value))]) == 2
    assert message in capsys.readouterr().err


def test_check_tells_all_mistakes_at_once(capsys):
    profile = changed("methods/ptmq/settings", {"step": 3})
    profile["methods"]["ptmg"] = {}
    assert main(["check", "--json", json.dumps(profile)]) == 2
    said = capsys.readouterr().err
    assert "'step'" in said and "'ptmg'" in said


def test_nested_command_line_values_arrive_as_text():
    profile = changed(
        "methods", {"ptmq": {"settings": {"steps": "3", "lr_rounding": "0.5", "mfm": "2", "gd_detach": "false"}}}
    )
    profile["seeds"] = ["1", "2"]
    runs = all_runs(validate(profile))
    assert {run.seed for run in runs} == {1, 2}
    from ptmq.suite.calibration import method_of

    settings = method_of(runs[0]).settings
    assert (settings.steps, settings.lr_rounding, settings.mfm, settings.gd_detach) == (3, 0.5, "2", False)


@pytest.mark.parametrize("argv, message", [
    (["--method", "lsq"], "profile digits: method 'lsq' is unknown. Known: adaptive_bn, adaround, any_precision, brecq,"),
    (["--method", "ptmq", "--width", "W4A4"], "Choose one of: --variant default --width multi."),
])  # fmt: skip
def test_a_run_that_the_profile_lacks_is_said(argv, message, capsys):
    profile = str(ROOT / "workflow/config/digits.yaml")
    assert (
        main(["quantize", "--profile", profile, "--backbone", "digits_resnet", "--weights", "w", "--out", "x", *argv])
        == 2
    )
    assert message in capsys.readouterr().err


def test_runs_are_variants_by_seeds_by_widths():
    profile = changed("methods", {"qdrop": {"per_width": True, "widths": ["W3A3", "W4A4"]},
                                  "ptmq": {"settings": {"steps": 7}, "variants": {"default": {}, "long": {"steps": 9}}}})  # fmt: skip
    profile["seeds"] = [0, 1]
    profile["backbones"]["digits_resnet"]["settings"] = {"ptmq": {"regularizer": 0.1}}
    runs = [run for run in all_runs(profile) if run.backbone == "digits_resnet"]
    assert len(runs) == 2 * 2 + 2 * 2 and len({run.name for run in runs}) == len(runs)
    long = next(run for run in runs if run.variant == "long")
    assert long.settings == {"steps": 9, "regularizer": 0.1} and long.label == "multi" and len(long.widths) == 6
    assert {run.label for run in runs if run.method == "qdrop"} == {"W3A3", "W4A4"}
    assert all(Run.from_json(run.to_json()) == run for run in runs)


def test_widths_may_differ_by_backbone_and_seeds_by_variant():
    profile = changed("methods", {
        "nearest_mse": {"widths": {"digits_resnet": ["W2A4"]}},
        "ptmq": {"variants": {"default": {}, "once": {"seeds": [0]}}}})  # fmt: skip
    profile["seeds"] = [0, 1]
    runs = all_runs(validate(profile))
    nearest = {(run.backbone, run.widths) for run in runs if run.method == "nearest_mse"}
    others = [b for b in profile["backbones"] if b != "digits_resnet"]
    assert nearest == {("digits_resnet", ("W2A4",))} | {
        (b, tuple(w for group in profile["backbones"][b]["groups"].values() for w in group)) for b in others
    }
    once = [run for run in runs if run.variant == "once"]
    assert once and {run.seed for run in once} == {0} and all("seeds" not in run.settings for run in once)


def test_a_variant_may_have_groups_and_images_of_its_own():
    groups = {"low": ["W3A3"], "high": ["W8A8"]}
    profile = changed("methods", {"ptmq": {"variants": {
        "default": {}, "groups_two": {"groups": groups, "lambdas": [0.5, 0.5]}, "budget_64": {"calibration_images": 64}}}})  # fmt: skip
    runs = {run.variant: run for run in all_runs(validate(profile)) if run.backbone == "digits_resnet"}
    assert runs["groups_two"].groups == groups and runs["groups_two"].widths == ("W3A3", "W8A8")
    assert runs["groups_two"].settings == {"lambdas": [0.5, 0.5]}
    assert runs["budget_64"].calibration_images == 64 and runs["default"].calibration_images == 512


@pytest.mark.parametrize("text, message", [
    ("W4", "width 'W4' must look like W4A4"),
    ("W1A4", "weight bits must be 2..8"),
    ("W4A16", "activation bits must be 2..8"),
])  # fmt: skip
def test_wrong_widths(text, message):
    with pytest.raises(InputError, match=message):
        BitWidth.parse(text)


@pytest.mark.parametrize("groups, message", [
    (((), ("W4A4",), ("W8A8",)), "a bit group is empty"),
    ((("W4A4",), ("W4A4",), ("W8A8",)), "must not overlap: .* Got W4A4 in a group below W4A4."),
    ((("W3A3", "W6A6"), ("W8A8",), ("W5A5",)), "must not overlap: .* Got W6A6 in a group below W5A5."),
    ((("W4A4",),), "bit groups must be 2 to 4. Got 1."),
    ([(f"W{b}A{b}",) for b in range(3, 8)], "bit groups must be 2 to 4. Got 5."),
])  # fmt: skip
def test_wrong_groups(groups, message):
    with pytest.raises(InputError, match=message):
        BitGroups(*groups)


def test_a_draw_takes_one_of_each_group():
    import torch

    groups = BitGroups(("W3A3", "W4A4"), ("W5A5", "W6A6"), ("W7A7", "W8A8"))
    generator = torch.Generator().manual_seed(0)
    drawn = [groups.draw(generator) for _ in range(100)]
    for number, group in enumerate(groups.groups):
        assert {d[number] for d in drawn} == set(group)


def test_groups_are_ordered_by_their_widths():
    assert BitGroups(("W8A8",), ("W3A3", "W4A4")).groups[0] == (BitWidth(3, 3), BitWidth(4, 4))


@pytest.mark.parametrize("argv, message", [
    (["quantize", "--out", "x"], "--weights is missing"),
    (["quantize", "--weights", "w", "--out", "x"], "--profile, --backbone, --method are missing"),
    (["quantize", "--weights", "w", "--out", "x", "--spec", "{"], "is not a run in JSON"),
    (["quantize", "--weights", "w", "--out", "x", "--profile", "none.yaml", "--backbone", "b", "--method", "m"], "profile 'none.yaml' cannot be read: No such file"),
    (["evaluate", "--out", "x"], "give either --model"),
    (["evaluate", "--out", "x", "--model", "nowhere"], "nowhere/model.json' cannot be read: No such file"),
    (["evaluate", "--out", "x", "--weights", "w", "--backbone", "resnet2"], "backbone 'resnet2' is unknown. Did you mean 'resnet20'"),
    (["train", "--out", "x", "--backbone", "resnet20"], "has public weights"),
    (["train", "--out", "x", "--backbone", "digits_resnet", "--set", "epochs"], "--set needs KEY=VALUE. Got 'epochs'"),
    (["train", "--out", "x", "--backbone", "digits_resnet", "--set", "epochs=0"], "training of digits_resnet: epochs must be at least 1. Got 0."),
    (["weights", "--out", "x", "--backbone", "digits_resnet"], "has no public checkpoint"),
    (["data", "--out", "x", "--dataset", "digit"], "dataset 'digit' is unknown. Did you mean 'digits'"),
    (["check"], "--profile is missing"),
    (["check", "--profile", "."], "profile '.' cannot be read: Is a directory"),
    (["bench", "--repeats", "0"], "--repeats must be at least 1. Got 0."),
    (["bench", "--threads", "0"], "--threads must be at least 1. Got 0."),
    (["train", "--out", "x", "--backbone", "digits_resnet", "--set", "lr=[0.4"], "--set lr: '[0.4' is not a value in YAML"),
    (["train", "--out", "x", "--backbone", "digits_resnet", "--set", "batch_size=5000"], "batch_size must be at most the 1000 images. Got 5000."),
    (["evaluate", "--out", "x", "--weights", str(ROOT / "README.md"), "--backbone", "resnet20"], "is not a whole safetensors file"),
])  # fmt: skip
def test_the_command_line_answers_mistakes_in_one_sentence(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 2
    assert message in capsys.readouterr().err


def test_no_cuda_is_said(capsys):
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert main(["train", "--out", "x", "--backbone", "digits_resnet", "--device", "cuda"]) == 2
    assert "torch finds no CUDA GPU. Set device: cpu, or auto." in capsys.readouterr().err


def test_methods_are_listed(capsys):
    assert main(["methods"]) == 0
    said = capsys.readouterr().out
    assert "ptmq" in said and "nearest_mse" in said and "lr_rounding=" in said
