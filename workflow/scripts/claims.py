"""What our runs say of each of the paper's claims: a value with its 95 % interval, or what is missing to say it.

Whether a claim holds is decided in verdict.py, by the bounds that workflow/published.yaml gives it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pandas as pd
from intervals import Estimate, Interval, around, beside_one_run, lowest, ratio
from paired import Missing, Runs, by
from scipy.stats import gmean

IMAGENET = 1_281_167  # training images
READINGS = {  # what "with" and "without" the GD-Loss may mean: variants of PTMQ, and in words
    "figure-1 form, against every width to FP": ("gd_figure1", "gd_none"),
    "figure-1 form, against its mix term alone": ("gd_figure1", "gd_figure1_gamma_0"),
    "later form, against every width to FP": ("default", "gd_none"),
}


class Finding(NamedTuple):
    """A measured value in points, or a ratio; n: seeds, or runs · paired: by what the runs were paired."""

    interval: Interval
    n: int
    paired: str
    reason: str


class Claim(NamedTuple):
    """A line of the table: what the paper says, how it is measured; which claim's bounds decide."""

    key: str
    text: str
    measure: Callable[[], Finding]


def of_difference(found: Estimate, reason: str) -> Finding:
    """What a difference says by itself."""
    return Finding(around(found), found.n, by(found), reason)


# ---------------------------------------------------------------- how they are measured
def one_calibration(runs: Runs) -> Finding:
    """PTMQ minus rounding to nearest with the same step sizes, at the width where it gains least."""
    gains = {width: runs.difference(("ptmq", width), ("nearest_mse", width)) for width in runs.groups}
    width, interval = lowest(gains)
    best = max(gains, key=lambda width: gains[width].mean)
    reason = f"PTMQ minus nearest, least of {len(gains)} widths, at {width}; most at {best}: {gains[best].mean:+.2f}"
    return Finding(interval, gains[width].n, by(gains[width]), reason)


def near_single_width(runs: Runs, width: str) -> Finding:
    """PTMQ minus QDrop calibrated for that width alone."""
    found = runs.difference(("ptmq", width), ("qdrop", width))
    return of_difference(found, "PTMQ minus QDrop for that width alone, same calibration images")


def case3_best(runs: Runs) -> Finding:
    """Case 3 minus the best other case, at 3 bits."""
    others = {case: runs.difference(("ptmq", "W3A3"), ("ptmq", "W3A3", f"mfm_{case}")) for case in ("1", "2")}
    hardest, interval = lowest(others)
    unmixed = runs.difference(("ptmq", "W3A3"), ("ptmq", "W3A3", "mfm_none"))
    reason = f"case 3 minus the better of cases 1 and 2, case {hardest}, at W3A3; minus no mixing: {unmixed.mean:+.2f}"
    return Finding(interval, others[hardest].n, by(others[hardest]), reason)


def gd_gain(runs: Runs, width: str, with_gd: str, without: str) -> Finding:
    """One variant minus another at a width."""
    found = runs.difference(("ptmq", width, with_gd), ("ptmq", width, without))
    return of_difference(found, f"{with_gd} minus {without}, γ = 1")


def gd_more_at_low(runs: Runs, with_gd: str, without: str) -> Finding:
    """Gain at 3 bits minus gain at 5 bits."""
    found = runs.contrast(
        (1, "ptmq", "W3A3", with_gd), (-1, "ptmq", "W3A3", without),
        (-1, "ptmq", "W5A5", with_gd), (1, "ptmq", "W5A5", without),
    )  # fmt: skip
    return of_difference(found, "gain at W3A3 minus gain at W5A5")


# ---------------------------------------------------------------- which there are
def main_claims(claims: dict, runs: Runs) -> Iterator[Claim]:
    """About PTMQ on one backbone, from the runs of all methods."""
    where = f"[{runs.backbone}, {runs.iterations:,} iterations]"
    yield Claim("one_calibration", f"{claims['one_calibration']['text']} {where}", partial(one_calibration, runs))
    for width in ("W3A3", "W4A4"):
        key = f"near_single_width_{width.lower()}"
        if width in runs.groups:
            yield Claim(key, f"{claims[key]['text']} {where}", partial(near_single_width, runs, width))


def ablation_claims(claims: dict, runs: Runs) -> Iterator[Claim]:
    """About PTMQ's parts on one backbone, from its variants; a reading of the GD-Loss is a line."""
    where = f"[{runs.backbone}, {runs.iterations:,} iterations]"
    yield Claim("mfm_case3_best", f"{claims['mfm_case3_best']['text']} {where}", partial(case3_best, runs))
    for reading, pair in READINGS.items():
        for key, measure in {
            "gd_gain_w3a3": partial(gd_gain, runs, "W3A3", *pair),
            "gd_gain_w5a5": partial(gd_gain, runs, "W5A5", *pair),
            "gd_more_at_low_widths": partial(gd_more_at_low, runs, *pair),
        }.items():
            yield Claim(key, f"{claims[key]['text']}, {reading} {where}", measure)


def speed_ups(published: dict, runs: pd.DataFrame) -> Iterator[Claim]:
    """About every multi-bit method that was trained on the machine where PTMQ was run, on every backbone."""
    text, schedules = published["claims"]["speed_up"]["text"], published["schedules"]
    each = runs[(runs.status == "done") & (runs.variant == "default")].drop_duplicates(["backbone", "method", "seed"])
    pairs = []
    for (backbone, method), trained in each[each.epochs > 0].groupby(["backbone", "method"]):
        ptmq = each[(each.backbone == backbone) & (each.method == "ptmq") & each.machine.isin(trained.machine)]
        if len(ptmq) and method in schedules:
            where = f"[{backbone}, {trained.images_used.max():,.0f} training images]"
            pairs.append((f"{text}: {method} {where}", partial(speed_up, schedules, trained, ptmq)))
    missing = "a multi-bit method that is trained, on the machine of PTMQ's runs"
    for name, measure in pairs or [(text, partial(needs, missing))]:
        yield Claim("speed_up", name, measure)


def needs(what: str) -> Finding:
    """Raises Missing, which says so."""
    raise Missing(f"needs {what}")


def speed_up(schedules: dict, trained: pd.DataFrame, ptmq: pd.DataFrame) -> Finding:
    """Seconds an image processed, as measured here, times the images that the publications process, as a ratio.

    Of the processor where all runs were on CPUs and say them: other jobs move those less than seconds of the clock.
    An iteration of PTMQ processes its batch at every width that it draws, by each block in turn, which is by the whole
    network once. An epoch processes every training image.
    """
    method, both = trained.method.iloc[0], pd.concat([trained, ptmq])
    on_cpu = "cpu_seconds" in both and both.cpu_seconds.notna().all() and both.device.eq("cpu").all()
    of, cpu = ("cpu_seconds", "CPU-") if on_cpu else ("seconds", "")
    seconds, told = [], []
    for runs, unit, schedule in ((trained, "epochs", schedules[method]), (ptmq, "iterations", schedules["ptmq"])):
        images = (runs.images_processed * schedule[unit] / runs[unit]).iloc[0]
        each = runs[of] / runs.images_processed
        seconds.append(list(each * images))
        told.append(f"{1000 * gmean(each):.2f} {cpu}ms an image x {images:,.0f} images ({schedule[unit]:,} {unit})")
    interval = ratio(*seconds)
    grown = interval.value * IMAGENET / trained.images_used.max()
    reason = (
        f"{method} {told[0]} over ptmq {told[1]}; as run here {gmean(trained[of]):,.0f} {cpu}s over"
        f" {gmean(ptmq[of]):,.0f} {cpu}s; epochs of ImageNet's {IMAGENET:,} images for these"
        f" {trained.images_used.max():,.0f} would make it {grown:.0f}; {company(both)}"
    )
    return Finding(interval, min(len(trained), len(ptmq)), "", reason)


def company(runs: pd.DataFrame) -> str:
    """What else the machine did while the runs took their time."""
    if "load_end" not in runs or runs.load_end.isna().any():
        return "the records do not say what else the machine did"
    loads = pd.concat([runs.load_start, runs.load_end])
    return f"load average {loads.min():.1f} to {loads.max():.1f} on {runs.cores.iloc[0]:.0f} cores"


def accuracies(published: dict, runs: pd.DataFrame) -> Iterator[tuple[dict, str, Callable[[], Finding]]]:
    """Published accuracies: the entry, the width, and what ours are."""
    for entry in published["accuracy"]:
        for width in entry["top1"]:
            yield entry, width, partial(accuracy, entry, width, runs, published)


def accuracy(entry: dict, width: str, runs: pd.DataFrame, published: dict) -> Finding:
    """Our accuracy beside a published one of the same network, method and images."""
    here = entry.get("dataset", "imagenet") in set(runs.dataset.dropna())
    if not here or "note" in entry:
        raise Missing(entry["note"] if here else "needs ImageNet")
    ours = Runs(runs, entry["backbone"]).of(entry["method"], width)
    reason = published["sources"][entry["source"]]["title"]
    if "epochs" in published["schedules"].get(entry["method"], {}):
        reason += "; as long as it was trained here, which the run record says"
    return Finding(beside_one_run(list(ours.top1)), len(ours), "", reason)
