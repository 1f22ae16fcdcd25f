"""Runs and published numbers -> the verdict: which claims of the paper hold here, by how much, how surely.

    verdict.py --published workflow/published.yaml --runs results/cifar10/runs.csv
        [--ablations results/cifar10_ablations/runs.csv] [--mixed RECORD ...] --out results/cifar10/tables

Differences are paired by seed; ci95 is half the width of the 95 % interval of their mean (Student's t). What is judged
is ours with that interval; with one seed, with 1.96 standard errors of an accuracy on that many images instead.

- A claim with a value is `match` where ours lies within the tolerance of the paper's value, `near` where the whole
  interval has the sign of the paper's value, else `off`.
- A claim with a side (`at least`, less the tolerance) is `match` where the whole interval lies on it, `near` where a
  part of it does, else `off`.
- An accuracy is `match` within the tolerance, `near` within three times that, else `off`.
- The speed-up, a ratio of times, is `match` from the paper's value up, `near` from its square root up, else `off`.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import yaml
from intervals import Estimate, estimate
from paired import Missing, Runs
from tables import own_first, write

COLUMNS = ["claim", "paper", "ours", "sd", "n", "ci95", "delta", "tolerance", "verdict", "reason"]
POINT = 1.0  # tolerance of a difference of accuracies that the paper states, in points; half where it states 1
CELL = 0.5  # tolerance of an accuracy of the same network on the same images, in points
NORMAL95 = 1.96
IMAGENET = 1_281_167  # training images


def half_width(ours: Estimate, standard_error: float) -> float:
    """Half of the interval that is judged: over the seeds, or with one seed of the images."""
    return NORMAL95 * standard_error if math.isnan(ours.ci95) else ours.ci95


def judge_value(ours: Estimate, paper: float, tolerance: float, half: float) -> str:
    """Against a value of the paper; see above."""
    if abs(ours.mean - paper) <= tolerance:
        return "match"
    return "near" if ours.mean * paper > 0 and abs(ours.mean) > half else "off"


def judge_side(ours: Estimate, least: float, half: float) -> str:
    """Against a claim `at least`; see above."""
    if ours.mean - half >= least:
        return "match"
    return "near" if ours.mean + half >= least else "off"


def row(claim: str, paper: str, ours: Estimate, delta: float, tolerance: float, verdict: str, reason: str) -> dict:
    """One line of the table."""
    numbers = {"ours": ours.mean, "sd": ours.sd, "ci95": ours.ci95, "delta": delta, "tolerance": tolerance}
    rounded = {key: "" if math.isnan(value) else f"{value:.2f}" for key, value in numbers.items()} | {"n": ours.n}
    return {"claim": claim, "paper": paper, **rounded, "verdict": verdict, "reason": reason}


def not_run(claim: str, paper: str, reason: str) -> dict:
    """A line without a measurement."""
    return dict.fromkeys(COLUMNS, "") | {"claim": claim, "paper": paper, "verdict": "not run", "reason": reason}


# ---------------------------------------------------------------- the claims
READINGS = {  # what "with" and "without" the GD-Loss may mean: variants of PTMQ, and in words
    "figure-1 form, against every width to FP": ("gd_figure1", "gd_none"),
    "figure-1 form, against its mix term alone": ("gd_figure1", "gd_figure1_gamma_0"),
    "later form, against every width to FP": ("default", "gd_none"),
}


def one_calibration(runs: Runs) -> tuple[Estimate, str]:
    """PTMQ minus rounding to nearest with the same step sizes, at the width where it gains least (of all: severe)."""
    gains = {width: runs.difference(("ptmq", width), ("nearest_mse", width)) for width in runs.groups}
    worst = min(gains, key=lambda width: gains[width].mean)
    best = max(gains, key=lambda width: gains[width].mean)
    return gains[worst], f"least gain over nearest, at {worst}; most at {best}: {gains[best].mean:+.2f}"


def near_single_width(width: str) -> Callable:
    """PTMQ minus QDrop calibrated for that width alone."""
    return lambda runs: (
        runs.difference(("ptmq", width), ("qdrop", width)),
        "PTMQ minus QDrop, same images and step-size search; the paper's difference is on ImageNet",
    )


def gd_gain(width: str, with_gd: str, without: str) -> Callable:
    """One variant minus another at a width."""
    return lambda runs: (
        runs.difference(("ptmq", width, with_gd), ("ptmq", width, without)),
        f"{with_gd} minus {without}, γ = 1",
    )


def gd_more_at_low(with_gd: str, without: str) -> Callable:
    """Gain at 3 bits minus gain at 5 bits."""

    def measure(runs: Runs) -> tuple[Estimate, str]:
        low, high = (runs.of("ptmq", w, with_gd) - runs.of("ptmq", w, without) for w in ("W3A3", "W5A5"))
        return estimate(list((low - high).dropna())), "gain at W3A3 minus gain at W5A5"

    return measure


def case3_best(runs: Runs) -> tuple[Estimate, str]:
    """Case 3 minus the best other case at 3 bits."""
    others = {case: runs.difference(("ptmq", "W3A3"), ("ptmq", "W3A3", f"mfm_{case}")) for case in ("1", "2")}
    hardest = min(others, key=lambda case: others[case].mean)
    unmixed = runs.difference(("ptmq", "W3A3"), ("ptmq", "W3A3", "mfm_none"))
    return others[hardest], f"case 3 minus case {hardest} at W3A3; minus no mixing: {unmixed.mean:+.2f}"


def judged(claim: dict, runs: Runs, measure: Callable, tolerance: float, at_least: bool = False, how: str = "") -> dict:
    """A claim's line; at_least: ours may be better than the paper's value, or than 0 where it gives none."""
    paper = claim.get("value")
    said = f"{'yes' if paper is None else f'{paper:+g}'} ({claim['certainty']})"
    text = f"{claim['text']}{', ' + how if how else ''} [{runs.backbone}, {runs.iterations:,} iterations]"
    try:
        ours, reason = measure(runs)
    except Missing as missing:
        return not_run(text, said, str(missing))
    half = half_width(ours, runs.standard_error)
    if at_least:
        verdict = judge_side(ours, (paper or 0) - tolerance, half)
    else:
        verdict = judge_value(ours, paper, tolerance, half)
    return row(text, said, ours, math.nan if paper is None else ours.mean - paper, tolerance, verdict, reason)


def main_claims(claims: dict, runs: Runs, switching: list[dict]) -> list[dict]:
    """What the runs of all methods say about PTMQ on one backbone."""
    lines = [judged(claims["one_calibration"], runs, one_calibration, runs.standard_error, at_least=True)]
    for width in ("W3A3", "W4A4"):
        if width in runs.groups:
            claim = claims[f"near_single_width_{width.lower()}"]
            lines.append(judged(claim, runs, near_single_width(width), POINT, at_least=True))
    return [*lines, recalibration(claims["no_recalibration"], runs.backbone, switching)]


def ablation_claims(claims: dict, runs: Runs) -> list[dict]:
    """What the variants of PTMQ say about its parts on one backbone; a reading of the GD-Loss is a line."""
    lines = [judged(claims["mfm_case3_best"], runs, case3_best, 0, at_least=True)]
    for how, pair in READINGS.items():
        lines += [
            judged(claims["gd_gain_w3a3"], runs, gd_gain("W3A3", *pair), POINT, how=how),
            judged(claims["gd_gain_w5a5"], runs, gd_gain("W5A5", *pair), POINT / 2, how=how),
            judged(claims["gd_more_at_low_widths"], runs, gd_more_at_low(*pair), 0, at_least=True, how=how),
        ]
    return lines


def recalibration(claim: dict, backbone: str, switching: list[dict]) -> dict:
    """Images needed to switch the network."""
    text, said = f"{claim['text']} [{backbone}]", f"0 images ({claim['certainty']})"
    if not switching:
        return not_run(text, said, "needs the mixed-precision stage")
    images, ms, adaptive_ms = (
        estimate([part[key] for part in switching]) for key in ("switch_images", "switch_ms", "adaptive_bn_ms")
    )
    reason = (
        f"a switch takes {ms.mean:.2g} ms; AdaptiveBN would take {switching[0]['adaptive_bn_images']:,} images "
        f"and {adaptive_ms.mean / 1000:.3g} s"
    )
    return row(text, said, images, images.mean, 0, "match" if images.mean == 0 else "off", reason)


def speed_up(published: dict, runs: pd.DataFrame) -> list[dict]:
    """Seconds of every multi-bit method that is trained over those of PTMQ, both at the length of their publications.

    Measured as they ran here, on the same device, and extrapolated: epochs and iterations take equally long.
    """
    claim, schedules = published["claims"]["speed_up"], published["schedules"]
    said = f"{claim['value']} x ({claim['certainty']})"
    each = runs[(runs.status == "done") & (runs.variant == "default")].drop_duplicates(["backbone", "method", "seed"])
    rows = []
    for (backbone, method), trained in each[each.epochs > 0].groupby(["backbone", "method"]):
        ptmq = each[(each.backbone == backbone) & (each.method == "ptmq") & each.device.isin(trained.device)]
        if ptmq.empty or method not in schedules:
            continue
        epoch, iteration = (trained.seconds / trained.epochs).mean(), (ptmq.seconds / ptmq.iterations).mean()
        epochs, iterations = schedules[method]["epochs"], schedules["ptmq"]["iterations"]
        seconds, seconds_ptmq = epoch * epochs, iteration * iterations
        ratio = estimate([seconds / seconds_ptmq])
        images = int(trained.images_used.max())
        here, here_ptmq = trained.seconds.mean(), ptmq.seconds.mean()
        verdict = "match" if ratio.mean >= claim["value"] else "near" if ratio.mean**2 >= claim["value"] else "off"
        reason = (
            f"{epoch:.0f} s an epoch x {epochs} = {seconds:,.0f} s over {iteration:.2f} s an iteration of each block x "
            f"{iterations:,} = {seconds_ptmq:,.0f} s; as run here {here:,.0f} s over {here_ptmq:,.0f} s = "
            f"{here / here_ptmq:.1f} x; "
            f"with the {IMAGENET:,} images of ImageNet for these {images:,} an epoch would make it "
            f"{ratio.mean * IMAGENET / images:.0f} x"
        )
        text = f"{claim['text']}: {method} [{backbone}]"
        rows.append(row(text, said, ratio, ratio.mean - claim["value"], 0, verdict, reason))
    return rows or [not_run(claim["text"], said, "needs a multi-bit method that is trained, in the same run")]


def cost_claims(published: dict, runs: pd.DataFrame) -> list[dict]:
    """The speed-up, and published costs, which cannot be measured without the paper's images and hardware."""
    return speed_up(published, runs) + [
        not_run(f"{entry['method']} on {entry['backbone']}, cost",
                f"{entry['minutes']:,} minutes, {entry['device']} ({entry['certainty']})",
                "needs ImageNet and that device")
        for entry in published["cost"]
    ]  # fmt: skip


def cells(published: dict, runs: pd.DataFrame) -> list[dict]:
    """Published accuracies of networks, methods and images that were run here, and PTMQ's own ones that were not."""
    found = []
    datasets = set(runs.dataset.dropna())
    for entry in published["accuracy"]:
        ours = Runs(runs, entry["backbone"]) if entry.get("dataset", "imagenet") in datasets else None
        for width, paper in entry["top1"].items():
            claim, said = f"{entry['method']} on {entry['backbone']}, {width}", f"{paper:.2f} ({entry['certainty']})"
            try:
                if ours is None or "note" in entry:
                    raise Missing("needs ImageNet" if ours is None else entry["note"])
                mine = estimate(list(ours.of(entry["method"], width)))
            except Missing as missing:
                if entry["method"] == "ptmq":
                    found.append(not_run(claim, said, str(missing)))
                continue
            delta = mine.mean - paper
            verdict = "match" if abs(delta) <= CELL else "near" if abs(delta) <= 3 * CELL else "off"
            source = published["sources"][entry["source"]]["title"]
            if "epochs" in published["schedules"].get(entry["method"], {}):
                source += "; as long as it was trained here, which the run record says"
            found.append(row(claim, said, mine, delta, CELL, verdict, source))
    return found


def backbones_of(runs: pd.DataFrame) -> list[str]:
    """Those that PTMQ was run on."""
    return list(runs[(runs.method == "ptmq") & (runs.status == "done")].backbone.drop_duplicates())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--published", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--ablations", type=Path)
    parser.add_argument("--mixed", type=Path, nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    published = yaml.safe_load(args.published.read_text())
    runs = own_first(pd.read_csv(args.runs))
    ablations = pd.read_csv(args.ablations) if args.ablations else runs
    switching = defaultdict(list)
    for record in (json.loads(path.read_text()) for path in args.mixed):
        switching[record["run"]["backbone"]].append(record["switching"])
    rows = []
    for backbone in backbones_of(runs):
        rows += main_claims(published["claims"], Runs(runs, backbone), switching[backbone])
    for backbone in backbones_of(ablations)[: None if args.ablations else 1]:  # one network's lines say what is missing
        rows += ablation_claims(published["claims"], Runs(ablations, backbone))
    rows += sorted(cells(published, runs) + cost_claims(published, runs), key=lambda line: line["verdict"] == "not run")
    args.out.mkdir(parents=True, exist_ok=True)
    write(pd.DataFrame(rows, columns=COLUMNS), args.out / "verdict", by=None)


if __name__ == "__main__":
    main()
