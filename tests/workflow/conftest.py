"""A folder with the records of a few runs."""

import pytest

from tests.records import BOTH, FP, Results, record


@pytest.fixture
def results(tmp_path) -> Results:
    """FP32, PTMQ with two seeds, QDrop width by width."""
    results = Results(tmp_path / "results")
    results.add(record("fp32", FP, label="W32A32"))
    for seed in (0, 1):
        results.add(record("ptmq", {"W3A3": 80.0 + 2 * seed, "W8A8": 91.0}, seed))
    results.add(record("qdrop", {"W3A3": 82.0}, label="W3A3", bits_per_weight=3.5))  # a tenth of the weights at 8 bits
    results.add(record("qdrop", {"W8A8": 91.5}, label="W8A8", bits_per_weight=8.0))
    return results


@pytest.fixture
def two_ways(results) -> Results:
    """Beside them MultiQuant, which re-estimates BatchNorm at a switch, and which was measured without that, too."""
    body = record("multiquant", BOTH | {"W3A3": 85.0}, cost={"images": 1000, "labels": 1000, "epochs": 5},
                  training={"iterations": 35, "loss": [1.0] * 5})  # fmt: skip
    without = [line | {"mode": "no_recalibration", "top1": 10.0} for line in body["results"]]
    body["results"] = [line | {"switch_images": 1000, "switch_ms": 20.0} for line in body["results"]] + without
    results.add(body)
    return results
