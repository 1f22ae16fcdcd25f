"""The mixed-precision stage: budgets are kept, uniform widths are among the points, a switch needs no image."""

import time

import pytest

from ptmq.common.errors import InputError
from ptmq.suite.calibration import calibrate
from ptmq.suite.evaluation import evaluate_model
from ptmq.suite.frontier import POINTS, frontier, median_ms
from tests.toys import CPU


@pytest.fixture(scope="module")
def record(calibrated, weights, fp_outputs):
    return frontier(calibrated, weights, "test", fp_outputs, None, CPU)


def points(record, kind: str) -> list[dict]:
    return [point for point in record["points"] if point["kind"] == kind]


def test_budgets_are_kept_and_bits_are_counted(record):
    mixed = points(record, "mixed")
    assert len(mixed) == POINTS
    for point in mixed:
        assert point["average_bits"] <= float(point["budget"]) + 0.006, "a budget is named with two digits"
    expected = [point["expected_kl"] for point in mixed]
    assert expected == sorted(expected, reverse=True), "a larger budget is never worse by the measure of the search"
    operations = [point["bit_operations"] for point in points(record, "uniform")]
    assert operations == sorted(operations) and operations[-1] > operations[0]


def test_uniform_points_are_those_of_the_evaluation(record, calibrated, fp_outputs):
    evaluated = evaluate_model(calibrated, "test", fp_outputs, None, CPU)["results"]
    assert [(p["budget"], p["correct"], p["kl"]) for p in points(record, "uniform")] == [
        (line["width"], line["correct"], line["kl"]) for line in evaluated
    ]


def test_switching_needs_no_image_and_less_time_than_recalibration(record):
    switching = record["switching"]
    assert switching["switch_images"] == 0 and switching["adaptive_bn_images"] == 896
    assert 0 < switching["switch_ms"] < switching["adaptive_bn_ms"]


def test_a_size_is_a_budget(calibrated, weights, fp_outputs, record):
    kib = points(record, "uniform")[1]["kib"]
    asked = frontier(calibrated, weights, "test", fp_outputs, None, CPU, bits=[4.0], kib=[kib])
    found = {point["budget"]: point for point in points(asked, "mixed")}
    assert set(found) == {"4.00", f"{kib:g} KiB"} and found[f"{kib:g} KiB"]["kib"] <= kib + 0.01
    with pytest.raises(InputError, match="--kib must be at least .*, all blocks at their lowest width. Got 1"):
        frontier(calibrated, weights, "test", fp_outputs, None, CPU, kib=[1.0])


def test_a_model_without_a_choice_is_said(weights, make_run, tmp_path):
    calibrate(make_run("adaptive_bn"), weights, None, tmp_path, CPU)
    with pytest.raises(InputError, match="a model of adaptive_bn has one width for the whole network"):
        frontier(tmp_path, weights, "test", None, None, CPU)


def test_the_median_time_is_in_milliseconds():
    assert 1.9 < median_ms(lambda i: time.sleep(0.002), 5) < 20
