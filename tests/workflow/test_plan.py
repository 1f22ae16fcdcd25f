"""What a profile plans, what of it is published, and which records its reports read."""

import json
import shutil

import pytest
from plan import Plan, outputs_of

from ptmq.common.errors import InputError
from ptmq.suite.profile import read_profile, validate
from tests.toys import ROOT

PUBLISHED = ROOT / "results/published"
MINE = {"per_width": True, "backbones": ["resnet20"], "widths": ["W3A3", "W4A4"]}


def cifar10(**changes) -> dict:
    """The published profile with some keys changed."""
    return {**read_profile(ROOT / "workflow/config/cifar10.yaml"), **changes}


def plan_of(profile: dict, folder: str = "results/cifar10", **more) -> Plan:
    return Plan(profile, folder, str(PUBLISHED), **more)


def test_a_baseline_beside_published_rows_plans_its_own_runs_and_nothing_else():
    profile = cifar10()
    profile["methods"] = {**profile["methods"], "mine": MINE}
    plan = plan_of(profile)
    runs = {name for name, run in plan.runs.items() if run.method == "mine"}
    assert len(runs) == 2 * len(profile["seeds"])
    assert set(plan.planned) == runs | {"resnet20/fp32/default/W32A32/seed0"}
    shown = plan.reports()["collect"].reads["records"]
    assert {f"{PUBLISHED}/cifar10/records/{name}.json" for name in plan.taken} < set(shown)
    assert all(path.startswith(("results/cifar10/", f"{PUBLISHED}/")) for path in shown)


def test_nothing_that_a_report_makes_lies_among_published_results():
    made = [path for report in plan_of(cifar10()).reports().values() for path in outputs_of(report)]
    assert made and not any("published" in path for path in made)


def test_compare_none_computes_everything():
    plan = plan_of(cifar10(compare="none"))
    assert not plan.taken and set(plan.runs) < set(plan.planned)


def test_another_name_recomputes_nothing_that_is_published():
    assert plan_of(cifar10(profile="mine"), "results/mine").planned == plan_of(cifar10()).planned


def test_another_setting_is_not_the_published_run():
    profile = cifar10()
    profile["methods"] = {**profile["methods"], "ptmq": {**profile["methods"]["ptmq"], "settings": {"iterations": 7}}}
    plan = plan_of(profile)
    assert {plan.runs[name].method for name in plan.planned if name in plan.runs} == {"ptmq"}


@pytest.mark.parametrize("only", [
    {"methods": ["qdrop"], "backbones": ["resnet20"], "seeds": [0]},
    {"methods": "ptmq", "backbones": ["resnet56"]},
])  # fmt: skip
def test_only_runs_just_that_and_shows_what_is_published_beside(only):
    plan = plan_of(cifar10(only=only))
    runs = [plan.runs[name] for name in plan.planned if name in plan.runs]
    assert runs and {run.method for run in runs} == {only["methods"]} if isinstance(only["methods"], str) else runs
    assert {run.backbone for run in runs} == set(only["backbones"])
    assert {run.seed for run in runs} == set(only.get("seeds", [0, 1, 2]))
    assert len(plan.shown(plan.planned)) > len(plan.planned), "the published ones of the same runs stand beside them"


@pytest.mark.parametrize("only, message", [
    ({"methods": ["qdropp"]}, "only: method 'qdropp' is unknown. Did you mean 'qdrop'?"),
    ({"backbones": ["resnet21"]}, "only: backbone 'resnet21' is unknown. Did you mean 'resnet20'?"),
    ({"seeds": [7]}, "only: seed '7' is unknown. Known: 0, 1, 2"),
    ({"method": ["qdrop"]}, "only: key 'method' is unknown. Did you mean 'methods'?"),
    ({"methods": ["multiquant"], "backbones": ["resnet56"]}, "only: no run of profile 'cifar10' is all of"),
])  # fmt: skip
def test_a_wrong_choice_is_a_sentence(only, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        plan_of(cifar10(only=only))


def test_an_unknown_comparison_is_a_sentence():
    with pytest.raises(InputError, match="compare: published profile 'cifar11' is unknown. Did you mean 'cifar10'"):
        plan_of(cifar10(compare="cifar11"))


def test_published_rows_of_the_same_name_are_compared_by_default():
    profile = cifar10()
    del profile["compare"]
    assert plan_of(profile).published == plan_of(validate(profile)).published == f"{PUBLISHED}/cifar10"
    assert plan_of(profile | {"profile": "mine"}).published is None


def test_a_profile_that_is_not_published_computes_itself():
    profile = read_profile(ROOT / "workflow/config/digits.yaml")
    plan = plan_of(profile, "results/digits")
    assert not plan.taken and set(plan.runs) < set(plan.planned)


def test_records_of_before_are_of_todays_runs(tmp_path):
    """Settings were named otherwise, and how a run is executed was a setting: the run is the same."""
    profile = validate({
        "profile": "old", "dataset": "cifar10", "seeds": [0], "calibration_images": 8, "compare": "old",
        "backbones": {"resnet20": None},
        "methods": {"qdrop": {"per_width": True, "widths": ["W4A4"], "settings": {"iterations": 5}}},
    })  # fmt: skip
    name = "resnet20/qdrop/default/W4A4/seed0"
    path = tmp_path / "old/records" / f"{name}.json"
    path.parent.mkdir(parents=True)
    run = {
        "dataset": "cifar10", "widths": ["W4A4"], "seed": 0, "calibration_images": 8,
        "groups": {"low": ["W3A3", "W4A4"], "medium": ["W5A5", "W6A6"], "high": ["W7A7", "W8A8"]},
        "settings": {"steps": 5, "autocast": False},
    }  # fmt: skip
    for settings, taken in ((run["settings"], True), ({"steps": 6}, False), ({"steps": 5, "autocast": True}, False)):
        path.write_text(json.dumps({"run": {**run, "settings": settings}}))
        assert (name in Plan(profile, "results/old", str(tmp_path)).taken) == taken, settings


def test_from_records_reports_what_has_a_record(tmp_path):
    shutil.copytree(PUBLISHED / "imagenet_subset", tmp_path / "own")
    profile = {**read_profile(ROOT / "workflow/config/imagenet_subset.yaml"), "compare": "none"}
    plan = Plan(profile, str(tmp_path / "own"), str(PUBLISHED), from_records=True)
    assert set(plan.records) == {str(path) for path in (tmp_path / "own/records").rglob("*.json")}
    assert set(plan.planned) == set(plan.runs) | set(plan.ceilings.values()), "what was not run is told"


VARIANTS = {"default": {}, "gd_none": {"gd": "none"}, "mfm_1": {"mfm": "1", "seeds": [0]}}


def digits(variants: dict, **changes) -> dict:
    """The embedded profile with variants of PTMQ."""
    profile = {**read_profile(ROOT / "workflow/config/digits.yaml"), **changes}
    profile["methods"] = {**profile["methods"], "ptmq": {"variants": variants}}
    return profile


def test_an_ablation_reads_the_default_its_variants_and_the_floor():
    plan = plan_of(digits(VARIANTS, seeds=[0, 1]), "results/digits")
    assert plan.ablated == ["mfm", "gd"] and {"ablation_mfm", "ablation_gd"} <= set(plan.wanted())
    kinds = {(plan.runs[path.removeprefix("results/digits/records/").removesuffix(".json")].method, path.split("/")[5])
             for path in plan.ablation_records("gd")}  # fmt: skip
    assert kinds == {("ptmq", "default"), ("ptmq", "gd_none"), ("nearest_mse", "default")}


def test_an_ablation_leaves_out_a_backbone_without_its_variants():
    plan = plan_of(digits({"default": {}, "gd_none": {"gd": "none", "backbones": ["digits_resnet"]}}), "results/digits")
    assert {"digits_resnet"} < {run.backbone for run in plan.runs.values()}
    assert {path.split("/")[3] for path in plan.ablation_records("gd")} == {"digits_resnet"}


def test_an_ablation_is_of_the_method_whose_part_it_varies():
    profile = digits({"default": {}})
    profile["methods"]["nested"] = {"variants": {"default": {}, "grid_own": {"anchor": 0}}}
    plan = plan_of(profile, "results/digits")
    assert plan.ablated == ["grid"] and {plan.runs[name].method for name in plan.variants("grid")} == {"nested"}
    assert "--method nested" in plan.reports()["ablation_grid"].arguments


@pytest.mark.parametrize("variants, message", [
    ({"default": {}}, "no variant of ptmq whose name begins with 'gd_'"),
    ({"gd_none": {"gd": "none"}}, "'default' of the same backbone and seed, which is missing for digits_resnet, seed 0"),
    ({"default": {}, "gd_none": {"gd": "none", "seeds": [1]}}, "missing for digits_resnet, seed 1"),
])  # fmt: skip
def test_what_cannot_be_compared_is_said(variants, message):
    plan = plan_of(digits(variants), "results/digits")
    with pytest.raises(InputError, match=message):
        plan.ablation_records("gd")


def test_a_run_for_onnx_is_reported_wherever_there_is_one():
    profile = read_profile(ROOT / "workflow/config/digits.yaml")
    plan = plan_of(profile, "results/digits")
    assert {(plan.runs[name].backbone, plan.runs[name].method) for name in plan.for_onnx} == {
        ("digits_resnet", "nested"), ("digits_vit", "nested")
    }  # fmt: skip
    collect = plan.reports()["collect"]
    assert (
        "deploy" in plan.wanted() and set(collect.reads["deployed"]) == set(plan.deployed) and len(plan.deployed) == 2
    )
    without = plan_of({**profile, "methods": {"nearest_mse": {}}}, "results/digits")
    assert "deploy" not in without.wanted()
    with pytest.raises(InputError, match="has no run with target: onnx"):
        without.reports()["deploy"].reads["records"]()
