"""Runs and published numbers -> how far the published description carries: the tables verdict.* and checks.*.

    verdict.py --published workflow/published.yaml --runs results/cifar10/runs.csv
        [--ablations results/cifar10_ablations/runs.csv] [--mixed RECORD ...] --out results/cifar10/tables

A claim has bounds, which workflow/published.yaml gives with their reason. Our runs give a value with its 95 % interval.

- `holds`: the whole interval lies within the bounds.
- `does not hold`: the whole interval lies outside them.
- `inconclusive`: neither. More seeds or more images would decide. One seed never does, as its spread is unknown.
- `not run`: a run is missing, and the reason says which.

So noise widens the interval and can only lead to `inconclusive`; it never makes a verdict better.

A check is no claim: it compares a constant with itself, or a downloaded network with what its own page says. It passes
where both agree to the last digit that is published.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import yaml
from claims import Finding, ablation_claims, accuracies, main_claims, speed_ups
from intervals import Interval
from paired import Missing, Runs
from tables import own_first, write

COLUMNS = ["claim", "paper", "holds if", "ours", "95 % interval", "n", "paired by", "verdict", "reason"]
CHECKS = ["check", "expected", "found", "result", "reason"]
FP = "W32A32"
LAST_DIGIT = 0.01  # of a published accuracy, in points


def judge(interval: Interval, least: float = -math.inf, most: float = math.inf) -> str:
    """The verdict on a claim that holds from `least` to `most`; the rules stand above."""
    if least <= interval.low and interval.high <= most:
        return "holds"
    if interval.high < least or interval.low > most:
        return "does not hold"
    return "inconclusive"


def bounds(claim: dict) -> tuple[float, float, str]:
    """From where to where a claim holds, and that in words."""
    if "at_least" in claim:
        return claim["at_least"], math.inf, f"≥ {claim['at_least']:g}"
    least, most = claim["within"]
    return least, most, f"{least:g} to {most:g}"


def said(claim: dict) -> str:
    """What the paper gives as a number, if any."""
    if "value" not in claim:
        return "yes"
    return f"{claim['value']:g} {claim['unit']}" if "unit" in claim else f"{claim['value']:+g}"


def line(text: str, paper: str, claim: dict, measure: Callable[[], Finding]) -> dict:
    """A claim's line of the table; claim: the bounds that decide it."""
    least, most, words = bounds(claim)
    shared = dict.fromkeys(COLUMNS, "") | {"claim": text, "paper": paper, "holds if": words}
    try:
        found = measure()
    except Missing as missing:
        return shared | {"verdict": "not run", "reason": str(missing)}
    value, low, high = found.interval
    return shared | {
        "ours": f"{value:.2f}",
        "95 % interval": f"{low:.2f} to {high:.2f}" if math.isfinite(high) else "",
        "n": found.n,
        "paired by": found.paired,
        "verdict": judge(found.interval, least, most),
        "reason": found.reason + ("" if found.n > 1 else "; one run has no interval"),
    }


def claim_lines(published: dict, runs: list[Runs], ablations: list[Runs], table: pd.DataFrame) -> list[dict]:
    """What the paper says in words, judged."""
    claims = published["claims"]
    asked = [claim for each in runs for claim in main_claims(claims, each)]
    asked += [claim for each in ablations for claim in ablation_claims(claims, each)]
    lines = []
    for key, text, measure in [*asked, *speed_ups(published, table)]:
        lines.append(line(text, f"{said(claims[key])} ({claims[key]['certainty']})", claims[key], measure))
    return lines


def number_lines(published: dict, table: pd.DataFrame) -> list[dict]:
    """The published accuracies of what was run here, PTMQ's own in any case, and its costs."""
    lines = []
    tolerance = published["accuracy_tolerance"]["points"]
    for entry, width, measure in accuracies(published, table):
        if entry["method"] == "fp32" or width == FP:
            continue
        value = entry["top1"][width]
        paper = f"{value:.2f} ({entry['certainty']})"
        within = {"within": [round(value - tolerance, 2), round(value + tolerance, 2)]}
        found = line(f"{entry['method']} on {entry['backbone']}, {width}", paper, within, measure)
        if found["verdict"] != "not run" or entry["method"] == "ptmq":
            lines.append(found)
    for entry in published["cost"]:
        lines.append(dict.fromkeys(COLUMNS, "") | {
            "claim": f"{entry['method']} on {entry['backbone']}, cost",
            "paper": f"{entry['minutes']:,} minutes, {entry['device']} ({entry['certainty']})",
            "verdict": "not run",
            "reason": "needs ImageNet and that device",
        })  # fmt: skip
    return lines


def check(text: str, expected: str, found: str, agrees: bool | None, reason: str) -> dict:
    """A check's line of its table; agrees: None where it was not run."""
    result = "not run" if agrees is None else "passes" if agrees else "fails"
    return dict(zip(CHECKS, (text, expected, found, result, reason), strict=True))


def switching_checks(backbones: list[str], switching: dict[str, list[dict]]) -> list[dict]:
    """Images that a switch of the whole network takes: none, as the models are built."""
    lines = []
    for backbone in backbones:
        text, parts = f"nothing is recalibrated when the bit-width switches [{backbone}]", switching[backbone]
        if not parts:
            lines.append(check(text, "0 images", "", None, "needs the mixed-precision stage"))
            continue
        images = max(part["switch_images"] for part in parts)
        ms, adaptive_ms = (sum(part[key] for part in parts) / len(parts) for key in ("switch_ms", "adaptive_bn_ms"))
        reason = (
            f"by construction: BatchNorm is folded; a switch takes {ms:.2g} ms, AdaptiveBN would take"
            f" {parts[0]['adaptive_bn_images']:,} images and {adaptive_ms / 1000:.3g} s"
        )
        lines.append(check(text, "0 images", f"{images} images", images == 0, reason))
    return lines


def network_checks(published: dict, table: pd.DataFrame) -> list[dict]:
    """Published accuracies of floating-point networks that were run here."""
    lines = []
    datasets = set(table.dataset.dropna())
    for entry in published["accuracy"]:
        if FP not in entry["top1"] or "note" in entry or entry.get("dataset", "imagenet") not in datasets:
            continue
        try:
            ours = Runs(table, entry["backbone"]).of("fp32", FP).top1.mean()
        except Missing:
            continue
        expected = entry["top1"][FP]
        source = published["sources"][entry["source"]]["title"]
        agrees = abs(ours - expected) <= LAST_DIGIT + 1e-9
        text = f"FP32 of {entry['backbone']} is the network of {entry['source']}"
        lines.append(check(text, f"{expected:.2f} ({entry['certainty']})", f"{ours:.2f}", agrees, source))
    return lines


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
    table = own_first(pd.read_csv(args.runs))
    other = args.ablations or args.runs
    variants = pd.read_csv(other)
    switching = defaultdict(list)
    for record in (json.loads(path.read_text()) for path in args.mixed):
        switching[record["run"]["backbone"]].append(record["switching"])
    runs = [Runs(table, backbone, args.runs.parent) for backbone in backbones_of(table)]
    # without ablations one network's lines say what is missing
    ablations = [Runs(variants, b, other.parent) for b in backbones_of(variants)[: None if args.ablations else 1]]
    lines = claim_lines(published, runs, ablations, table)
    lines += sorted(number_lines(published, table), key=lambda line: line["verdict"] == "not run")
    checks = switching_checks([each.backbone for each in runs], switching) + network_checks(published, table)
    args.out.mkdir(parents=True, exist_ok=True)
    write(pd.DataFrame(lines, columns=COLUMNS), args.out / "verdict", by=None)
    write(pd.DataFrame(checks, columns=CHECKS), args.out / "checks", by=None)


if __name__ == "__main__":
    main()
