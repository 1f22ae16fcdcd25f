"""Intervals over seeds and images, some of them of simulated runs whose truth is known."""

import json
import math
import re
from pathlib import Path

import intervals
import numpy as np
import paired
import pandas as pd
import pytest
import verdict
from safetensors.numpy import save_file

from tests.simulated_runs import DRAWS, IMAGES, SEEDS, runs


def gains(rng: np.random.Generator, truth: np.ndarray) -> dict:
    """Simulated gains at some widths, with noise of images that the seeds share, and of the seeds."""
    values = truth + 0.2 * rng.standard_normal(len(truth)) + 0.1 * rng.standard_normal((SEEDS, len(truth)))
    return {str(w): intervals.estimate(list(values[:, w]), intervals.Source(0.2**2)) for w in range(len(truth))}


@pytest.mark.parametrize("truth", [[0.0] * 6, [0.0, 0.5, 0.5, 1.0, 1.0, 2.0], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]])
def test_the_lowest_of_several_widths_is_not_lowest_by_chance(truth):
    """Neither end of the interval of the minimum is beyond the true one in more than 2.5 % of the draws."""
    rng = np.random.default_rng(3)
    found = [intervals.lowest(gains(rng, np.array(truth)))[1] for _ in range(DRAWS)]
    noise = 2 * math.sqrt(0.025 * 0.975 / DRAWS)
    assert np.mean([interval.low > 0 for interval in found]) <= 0.025 + noise
    assert np.mean([interval.high < 0 for interval in found]) <= 0.025 + noise


def test_choosing_the_lowest_without_a_correction_would_be_wrong_more_often():
    """The test above can fail: as one width among six that are equal, the lowest mean lies too low."""
    rng = np.random.default_rng(3)
    wrong = 0
    for _ in range(DRAWS):
        found = gains(rng, np.zeros(6))
        lowest = min(found.values(), key=lambda estimate: estimate.mean)
        wrong += intervals.around(lowest).high < 0
    assert wrong / DRAWS > 0.05


def test_an_interval_of_seeds_alone_is_students():
    found = intervals.estimate([1.0, 2.0, 3.0])
    assert (found.mean, found.sd, found.n) == (2, 1, 3)
    assert found.half() == pytest.approx(4.302653 / math.sqrt(3))  # t(0.975, 2 degrees of freedom)
    assert str(found) == "2.00 ± 2.48"


def test_one_seed_has_no_interval():
    for found in (intervals.estimate([1.0]), intervals.of_images(np.ones((1, 50)))):
        assert found.half() == math.inf
    assert str(intervals.estimate([1.0])) == "1.00"


def test_with_one_seed_the_images_are_in_brackets():
    """In about 95 % of draws of the images, what stands there holds the difference of the same two models on all images."""
    rng, inside = np.random.default_rng(9), 0
    for _ in range(DRAWS):
        x = 100.0 * rng.choice([-1, 0, 1], (1, 1000), p=[0.08, 0.82, 0.1])
        mean, half = re.fullmatch(r"(.*) \(± (.*)\)", str(intervals.of_images(x))).groups()
        inside += abs(float(mean) - 2) <= float(half)
    assert inside / DRAWS == pytest.approx(0.95, abs=0.02)


def test_sources_add_up():
    both = intervals.estimate([1.0, 2.0, 3.0], intervals.Source(4.0)).half()
    seeds, images = 4.302653 / math.sqrt(3), 1.959964 * 2
    assert both == pytest.approx(math.hypot(seeds, images), rel=1e-5)


def test_the_two_parts_of_the_noise_of_images_are_its_variances():
    """What the seeds share is the mean covariance of two of them, worked out here pair by pair."""
    x = np.random.default_rng(4).standard_normal((3, 200)) + np.random.default_rng(5).standard_normal(200)
    seeds, images = intervals.of_images(x).sources
    covariance = np.cov(x)
    pairs = [covariance[i, j] for i in range(3) for j in range(i)]
    assert images == pytest.approx(((np.mean(pairs) + intervals.BESIDE / 200) / 200, math.inf))
    assert seeds == pytest.approx((x.mean(1).var(ddof=1) / 3, 2))


def test_seeds_that_agree_on_every_image_leave_the_noise_of_the_images():
    once = 100.0 * np.random.default_rng(6).choice([-1, 0, 1], IMAGES)
    found = intervals.of_images(np.stack([once, once, once]))
    assert found.half() == pytest.approx(1.959964 * once.std(ddof=1) / math.sqrt(IMAGES), rel=1e-3)


@pytest.mark.parametrize("images", [100, 1000])
def test_methods_that_agree_on_every_image_may_differ_on_another(images):
    """Of n images without a difference, up to 3 in n others may have one (the rule of three)."""
    found = intervals.of_images(np.zeros((3, images)))
    assert found.half() == pytest.approx(100 * 3 / images, rel=0.1)


def test_a_ratio_has_an_interval_around_the_geometric_means():
    value, low, high = intervals.ratio([20.0, 22.0, 24.0], [2.0, 2.0, 2.0])
    assert value == pytest.approx((20 * 22 * 24) ** (1 / 3) / 2) and low < value < high
    assert value / low == pytest.approx(high / value)
    assert intervals.ratio([20.0], [2.0, 2.1]).high == math.inf


def test_one_published_run_has_the_spread_of_ours():
    """The published number is one run on the same images: in 95 % of draws it lies within the interval of ours."""
    rng = np.random.default_rng(7)
    inside = 0
    for _ in range(DRAWS):
        *ours, theirs = 70 + 0.2 * rng.standard_normal(4)
        _, low, high = intervals.beside_one_run(ours)
        inside += low <= theirs <= high
    assert inside / DRAWS == pytest.approx(0.95, abs=0.02)


# ---------------------------------------------------------------- runs, with and without what their evaluations kept
def table(folder: Path, correct: np.ndarray, methods: tuple[str, ...], keep: bool = True, **images) -> pd.DataFrame:
    """The rows of simulated runs at W3A3, and beside them what their evaluations kept."""
    rows = []
    for method, by_seed in zip(methods, correct, strict=True):
        for seed, right in enumerate(by_seed):
            name = f"{method}-{seed}.correct.safetensors"
            info = {"images": len(right), "dataset": "cifar10", "split": "test", "data": "ab", **images}
            save_file({"W3A3": np.packbits(right)}, folder / name, {"info": json.dumps(info)})
            rows.append({
                "backbone": "resnet20", "method": method, "variant": "default", "w_bits": 3, "a_bits": 3, "seed": seed,
                "top1": 100 * right.mean(), "images": len(right), "status": "done", "in_groups": True,
                "iterations": 500, "correct_file": name if keep else None})  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def simulated() -> np.ndarray:
    return runs(np.random.default_rng(8), (88.2, 89.3), spread=0.1)


def difference(rows: pd.DataFrame, folder: Path):
    """PTMQ minus QDrop at W3A3."""
    return paired.Runs(rows, "resnet20", folder).difference(("ptmq", "W3A3"), ("qdrop", "W3A3"))


def test_runs_are_compared_image_by_image_where_that_was_kept(simulated, tmp_path):
    found = difference(table(tmp_path, simulated, ("ptmq", "qdrop")), tmp_path)
    one, other = simulated.astype(float)
    assert found == intervals.of_images(100 * (one - other)) and found.paired


def test_without_it_the_images_count_as_different_ones(simulated, tmp_path):
    with_images = difference(table(tmp_path, simulated, ("ptmq", "qdrop")), tmp_path)
    without = difference(table(tmp_path, simulated, ("ptmq", "qdrop"), keep=False), tmp_path)
    assert without.mean == pytest.approx(with_images.mean) and not without.paired
    assert without.half() > with_images.half()
    one, other = 100 * simulated.mean((1, 2))
    noise = (one * (100 - one) + other * (100 - other)) / IMAGES
    assert without.sources[1] == pytest.approx((noise, math.inf), rel=1e-2)
    older = table(tmp_path, simulated, ("ptmq", "qdrop")).drop(columns="correct_file")
    assert difference(older, tmp_path) == without


def test_one_run_without_it_is_enough_to_compare_accuracies_alone(simulated, tmp_path):
    rows = table(tmp_path, simulated, ("ptmq", "qdrop"))
    rows.loc[0, "correct_file"] = None
    assert not difference(rows, tmp_path).paired


def test_other_images_are_not_paired(simulated, tmp_path):
    one = table(tmp_path, simulated[:1], ("ptmq",))
    other = table(tmp_path, simulated[1:], ("qdrop",), split="heldout")
    assert not difference(pd.concat([one, other]), tmp_path).paired


def test_a_run_that_was_measured_two_ways_has_the_bits_of_both(simulated, tmp_path):
    rows = table(tmp_path, simulated, ("ptmq", "qdrop"))
    name = "ptmq-0.correct.safetensors"
    bits = {"W3A3": np.packbits(simulated[0, 0]), "W3A3+truncated": np.packbits(simulated[1, 0])}
    info = {"images": IMAGES, "dataset": "cifar10", "split": "test", "data": "ab"}
    save_file(bits, tmp_path / name, {"info": json.dumps(info)})
    paired.kept.cache_clear()
    way = rows[rows.correct_file == name].assign(variant="default+truncated", top1=100 * simulated[1, 0].mean())
    both = paired.Runs(pd.concat([rows, way]), "resnet20", tmp_path)
    found = both.difference(("ptmq", "W3A3", "default+truncated"), ("qdrop", "W3A3"))
    assert found.mean == pytest.approx(0) and found.paired and found.n == 1


# ---------------------------------------------------------------- the rules
def test_more_noise_never_makes_a_verdict_better():
    """A wider interval turns nothing into `holds`, and `inconclusive` into nothing else."""
    rng = np.random.default_rng(9)
    for _ in range(5000):
        low, value, high = np.sort(rng.normal(0, 2, 3))
        least, most = np.sort(rng.normal(0, 2, 2))
        most = rng.choice([most, math.inf])
        before = verdict.judge(intervals.Interval(value, low, high), least, most)
        wider = intervals.Interval(value, low - rng.exponential(), high + rng.exponential())
        after = verdict.judge(wider, least, most)
        assert after in (before, "inconclusive")


def test_an_unknown_interval_decides_nothing():
    assert verdict.judge(intervals.Interval(5.0, -math.inf, math.inf), 0) == "inconclusive"
    assert verdict.judge(intervals.around(intervals.estimate([5.0])), 0) == "inconclusive"
