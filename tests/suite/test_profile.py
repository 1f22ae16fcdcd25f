"""Profiles and runs: what is accepted, what a mistake is told, which runs a profile asks for."""

import copy
import json

import pytest
import yaml

from ptmq.cli import main
from ptmq.common.errors import InputError
from ptmq.suite.calibration import method_of
from ptmq.suite.profile import Run, all_runs, read_profile, validate
from tests.toys import ROOT

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
    assert main(["check", "--profile", str(path)]) == 0, "the settings of every run, too"


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
    ("methods/ptmq/variants", {"once": {"backbones": ["digits_resnt"]}}, "methods.ptmq.variants.once.backbones: backbone 'digits_resnt' is unknown."),
    ("backbones/digits_resnet/settings", {"ptqm": {"iterations": 3}}, "backbones.digits_resnet.settings: method 'ptqm' is unknown. Did you mean 'ptmq'?"),
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
    ("methods/ptmq/settings", {"iteration": 3}, "ptmq: setting 'iteration' is unknown. Did you mean 'iterations'?"),
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
    profile = changed("methods/ptmq/settings", {"iteration": 3})
    profile["methods"]["ptmg"] = {}
    assert main(["check", "--json", json.dumps(profile)]) == 2
    said = capsys.readouterr().err
    assert "'iteration'" in said and "'ptmg'" in said


def test_nested_command_line_values_arrive_as_text():
    profile = changed(
        "methods", {"ptmq": {"settings": {"iterations": "3", "lr_rounding": "0.5", "mfm": "2", "gd_detach": "false"}}}
    )
    profile["seeds"] = ["1", "2"]
    runs = all_runs(validate(profile))
    assert {run.seed for run in runs} == {1, 2}
    settings = method_of(runs[0]).settings
    assert (settings.iterations, settings.lr_rounding, settings.mfm, settings.gd_detach) == (3, 0.5, "2", False)


def test_runs_are_variants_by_seeds_by_widths():
    profile = changed("methods", {"qdrop": {"per_width": True, "widths": ["W3A3", "W4A4"]},
                                  "ptmq": {"settings": {"iterations": 7}, "variants": {"default": {}, "long": {"iterations": 9}}}})  # fmt: skip
    profile["seeds"] = [0, 1]
    profile["backbones"]["digits_resnet"]["settings"] = {"ptmq": {"regularizer": 0.1}}
    runs = [run for run in all_runs(profile) if run.backbone == "digits_resnet"]
    assert len(runs) == 2 * 2 + 2 * 2 and len({run.name for run in runs}) == len(runs)
    long = next(run for run in runs if run.variant == "long")
    assert long.settings == {"iterations": 9, "regularizer": 0.1} and long.label == "multi" and len(long.widths) == 6
    assert {run.label for run in runs if run.method == "qdrop"} == {"W3A3", "W4A4"}
    assert all(Run.from_json(run.to_json()) == run for run in runs)


def test_widths_may_differ_by_backbone_and_seeds_and_backbones_by_variant():
    profile = changed("methods", {
        "nearest_mse": {"widths": {"digits_resnet": ["W2A4"]}},
        "ptmq": {"variants": {"default": {}, "once": {"seeds": [0]}, "there": {"backbones": ["digits_resnet"]}}}})  # fmt: skip
    profile["seeds"] = [0, 1]
    runs = all_runs(validate(profile))
    nearest = {(run.backbone, run.widths) for run in runs if run.method == "nearest_mse"}
    others = [b for b in profile["backbones"] if b != "digits_resnet"]
    assert nearest == {("digits_resnet", ("W2A4",))} | {
        (b, tuple(w for group in profile["backbones"][b]["groups"].values() for w in group)) for b in others
    }
    once = [run for run in runs if run.variant == "once"]
    assert once and {run.seed for run in once} == {0} and all("seeds" not in run.settings for run in once)
    there = [run for run in runs if run.variant == "there"]
    assert {run.backbone for run in there} == {"digits_resnet"}
    assert all("backbones" not in run.settings for run in there)
    assert {run.backbone for run in once} == set(profile["backbones"])


def test_the_backbones_of_a_variant_stand_for_those_of_its_method():
    body = {"backbones": ["digits_vit"], "variants": {"default": {}, "there": {"backbones": ["digits_resnet"]}}}
    runs = all_runs(validate(changed("methods", {"ptmq": body})))
    assert {(run.variant, run.backbone) for run in runs} == {("default", "digits_vit"), ("there", "digits_resnet")}


def test_a_variant_may_have_groups_and_images_of_its_own():
    groups = {"low": ["W3A3"], "high": ["W8A8"]}
    profile = changed("methods", {"ptmq": {"variants": {
        "default": {}, "groups_two": {"groups": groups, "lambdas": [0.5, 0.5]}, "budget_64": {"calibration_images": 64}}}})  # fmt: skip
    runs = {run.variant: run for run in all_runs(validate(profile)) if run.backbone == "digits_resnet"}
    assert runs["groups_two"].groups == groups and runs["groups_two"].widths == ("W3A3", "W8A8")
    assert runs["groups_two"].settings == {"lambdas": [0.5, 0.5]}
    assert runs["budget_64"].calibration_images == 64 and runs["default"].calibration_images == 512


def test_the_registry_counts_where_the_profile_says_nothing():
    profile = {"profile": "p", "dataset": "imagenet", "seeds": [0], "calibration_images": 8,
               "backbones": {"mobilenet_v2": {}, "vit_tiny_patch16_224": {"groups": {"low": ["W4A4"], "high": ["W8A8"]}}},
               "methods": {"ptmq": {}}}  # fmt: skip
    runs = {run.backbone: run for run in all_runs(validate(profile))}
    assert runs["mobilenet_v2"].settings == {"regularizer": 0.1} and runs["mobilenet_v2"].widths[0] == "W4A4"
    assert runs["vit_tiny_patch16_224"].widths == ("W4A4", "W8A8") and runs["vit_tiny_patch16_224"].settings == {}


def test_how_a_run_is_executed_is_no_setting_of_a_method():
    profile = changed("methods", {"ptmq": {"variants": {"default": {}, "half": {"execution": {"autocast": True}}}}})
    profile["execution"] = {"compile": False}
    runs = {run.variant: run for run in all_runs(validate(profile))}
    assert runs["default"].execution == {"compile": False} and runs["default"].settings == runs["half"].settings
    assert runs["half"].execution == {"compile": False, "autocast": True}
