"""The verdict: intervals, judgements, published numbers, missing runs."""

import math

import jsonschema
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from test_report import script

PUBLISHED = ROOT / "workflow" / "published.yaml"


@pytest.fixture(scope="module")
def scripts():
    import sys

    sys.path.insert(0, str(ROOT / "workflow" / "scripts"))
    import intervals
    import verdict

    sys.path.pop(0)
    return intervals, verdict


def test_published_numbers_keep_to_their_schema():
    published = yaml.safe_load(PUBLISHED.read_text())
    schema = yaml.safe_load((ROOT / "workflow/schemas/published.schema.yaml").read_text())
    jsonschema.Draft202012Validator(schema).validate(published)
    more = [*published["claims"].values(), *published["schedules"].values()]
    for entry in [*published["accuracy"], *published["cost"], *more]:
        assert entry["source"] in published["sources"] and entry["certainty"] in published["certainty"]


def test_an_interval_is_students(scripts):
    intervals, _ = scripts
    found = intervals.estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.n) == (2, 1, 3)
    assert found.ci95 == pytest.approx(4.302653 / math.sqrt(3))  # t(0.975, 2 degrees of freedom)
    assert math.isnan(intervals.estimate([1.0]).ci95) and str(intervals.estimate([1.0])) == "1.00"


@pytest.mark.parametrize("values, paper, tolerance, expected", [
    ([2.5, 3.5], 3, 1, "match"), ([1.0, 1.02], 3, 1, "near"), ([-0.5, -0.6], 3, 1, "off"),
    ([0.1, 1.0], 3, 1, "off"),  # the interval holds 0
    ([1.0], 3, 1, "near"), ([0.3], 3, 1, "off"),  # one seed: against the images' noise
])  # fmt: skip
def test_a_value_is_judged_by_tolerance_and_sign(scripts, values, paper, tolerance, expected):
    intervals, verdict = scripts
    ours = intervals.estimate(values)
    assert verdict.judge_value(ours, paper, tolerance, verdict.half_width(ours, standard_error=0.3)) == expected


@pytest.mark.parametrize(
    "values, expected",
    [
        ([1.0, 1.1, 1.2], "match"),
        ([-1.0, 0.2, 1.0], "near"),
        ([-1.0, -1.1, -1.2], "off"),
        ([0.7], "match"),
        ([0.2], "near"),
        ([-0.2], "near"),
        ([-0.7], "off"),
    ],
)
def test_a_side_is_judged_by_the_interval(scripts, values, expected):
    intervals, verdict = scripts
    ours = intervals.estimate(values)
    assert verdict.judge_side(ours, 0, verdict.half_width(ours, standard_error=0.3)) == expected


def runs(path, rows) -> None:
    lines = [
        {"backbone": "resnet20", "dataset": "cifar10", "method": method, "variant": variant, "w_bits": bits, "a_bits": bits,
         "seed": seed, "top1": top1, "status": "done", "in_groups": True, "images": 10000, "steps": 500, "epochs": None,
         "seconds": 100.0, "device": "cpu", "images_used": 1024}
        for method, variant, bits, seed, top1 in rows
    ]  # fmt: skip
    pd.DataFrame(lines).to_csv(path, index=False)


def table(tmp_path, rows) -> pd.DataFrame:
    runs(tmp_path / "runs.csv", rows)
    return verdict_of(tmp_path)


def verdict_of(tmp_path) -> pd.DataFrame:
    """The verdict table of tmp_path/runs.csv."""
    done = script(
        "verdict",
        "--published",
        PUBLISHED,
        "--runs",
        tmp_path / "runs.csv",
        "--out",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    return pd.read_csv(tmp_path / "verdict.csv", keep_default_na=False).set_index("claim")


def test_differences_are_paired_by_seed(tmp_path):
    """The methods' own spread is large, the difference is the same for every seed."""
    rows = [("ptmq", "default", 3, seed, 80.0 + 3 * seed) for seed in range(3)]
    rows += [("qdrop", "default", 3, seed, 81.0 + 3 * seed) for seed in range(3)]
    line = table(tmp_path, rows).loc[
        "close to a single-width method at W3A3: 64.92 against QDrop's 65.68 on ResNet-18 [resnet20, 500 steps]"
    ]
    assert (float(line.ours), float(line.sd), float(line.n), line.verdict) == (-1.0, 0.0, 3, "match")
    assert line.paper == "-0.76 (second_hand)"
    assert float(line.delta) == pytest.approx(-1 + 0.76)


def test_closer_than_the_paper_is_no_fault(tmp_path):
    rows = [("ptmq", "default", 4, seed, 90.0) for seed in range(3)] + [
        ("qdrop", "default", 4, seed, 89.0) for seed in range(3)
    ]
    line = table(tmp_path, rows).loc["close to a single-width method at W4A4: 67.57 against QDrop's 69.13 on ResNet-18 [resnet20, 500 steps]"]  # fmt: skip
    assert (line.ours, line.delta, line.verdict) == ("1.00", "2.56", "match")


def test_one_seed_is_judged_against_the_noise_of_its_images(tmp_path):
    """A loss of 0.5 points is noise on 600 images and none on 10,000."""
    rows = [("ptmq", "default", 8, 0, 98.0), ("nearest_mse", "default", 8, 0, 98.5)]
    claim = "one calibration serves all bit-widths [resnet20, 500 steps]"
    assert table(tmp_path, rows).loc[claim, "verdict"] == "off"
    pd.read_csv(tmp_path / "runs.csv").assign(images=600).to_csv(tmp_path / "runs.csv", index=False)
    assert verdict_of(tmp_path).loc[claim, "verdict"] == "near"


def test_what_was_not_run_says_what_it_needs(tmp_path):
    found = table(tmp_path, [("ptmq", "default", 3, 0, 80.0), ("nearest_mse", "default", 3, 0, 70.0)])
    assert list(found.columns) == ["paper", "ours", "sd", "n", "ci95", "delta", "tolerance", "verdict", "reason"]
    assert found.loc["one calibration serves all bit-widths [resnet20, 500 steps]", "verdict"] == "match"
    line = found.loc["case 3 is the best of the mixer's cases [resnet20, 500 steps]"]
    assert line.verdict == "not run" and line.reason == "needs ptmq (mfm_1) at W3A3" and line.ours == ""
    assert found.loc["ptmq on resnet18, W4A4", "verdict"] == "not run"
    assert found.loc["ptmq on resnet18, W4A4", "paper"] == "67.57 (second_hand)"


def test_the_distillation_claim_is_judged_for_every_reading(tmp_path):
    rows = [("ptmq", variant, bits, seed, top1 + seed) for seed in (0, 1) for variant, bits, top1 in (
        ("default", 3, 81.0), ("gd_none", 3, 83.0), ("gd_figure1", 3, 85.8), ("gd_figure1_gamma_0", 3, 85.3),
        ("default", 5, 90.0), ("gd_none", 5, 90.0), ("gd_figure1", 5, 90.1), ("gd_figure1_gamma_0", 5, 90.0))]  # fmt: skip
    found = table(tmp_path, rows)

    def line(claim: str, reading: str) -> list[str]:
        return found.loc[f"{claim}, {reading} [resnet20, 500 steps]", ["ours", "verdict"]].tolist()

    gain = "GD-Loss adds about 3 points at 3 bits"
    assert line(gain, "figure-1 form, against every width to FP") == ["2.80", "match"]
    assert line(gain, "figure-1 form, against its mix term alone") == ["0.50", "near"]
    assert line(gain, "later form, against every width to FP") == ["-2.00", "off"]
    assert line("GD-Loss adds about 1 point at 5 bits", "figure-1 form, against every width to FP") == ["0.10", "near"]
    more = "GD-Loss helps more at 3 bits than at 5"
    assert line(more, "figure-1 form, against every width to FP")[1] == "match"
    assert line(more, "later form, against every width to FP")[1] == "off"


def test_every_network_that_ptmq_ran_on_has_its_lines(tmp_path):
    runs(tmp_path / "runs.csv", [("ptmq", "default", 3, 0, 80.0), ("nearest_mse", "default", 3, 0, 70.0)])
    other = pd.read_csv(tmp_path / "runs.csv").assign(backbone="resnet56")
    both = pd.concat([pd.read_csv(tmp_path / "runs.csv"), other])
    both.to_csv(tmp_path / "runs.csv", index=False)
    found = verdict_of(tmp_path)
    for backbone in ("resnet20", "resnet56"):
        assert found.loc[f"one calibration serves all bit-widths [{backbone}, 500 steps]", "ours"] == "10.00"


def test_the_speed_up_is_worked_out_from_the_publications_schedules(tmp_path):
    runs(tmp_path / "runs.csv", [("ptmq", "default", 3, 0, 80.0), ("multiquant", "default", 3, 0, 85.0)])
    claim = "100 times faster than recent multi-bit methods"
    assert verdict_of(tmp_path).loc[claim, "verdict"] == "not run", "without epochs nothing was trained"
    table = pd.read_csv(tmp_path / "runs.csv")
    trained = table.method == "multiquant"
    table.loc[trained, ["epochs", "seconds", "images_used"]] = [10, 1000.0, 45000]
    table.to_csv(tmp_path / "runs.csv", index=False)
    line = verdict_of(tmp_path).loc[f"{claim}: multiquant [resnet20]"]
    # 100 s an epoch x 200 over 100 s / 500 steps x 20,000
    assert (line.ours, line.delta, line.verdict) == ("5.00", "-95.00", "off")
    assert "as run here 1,000 s over 100 s = 10.0 x" in line.reason
    assert "1,281,167 images of ImageNet" in line.reason and "142 x" in line.reason
    table.assign(device=["cpu", "cuda"]).to_csv(tmp_path / "runs.csv", index=False)
    assert verdict_of(tmp_path).loc[claim, "verdict"] == "not run", "times of two devices are not compared"
