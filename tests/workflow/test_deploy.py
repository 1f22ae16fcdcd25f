"""The table of exported files: numbers of the records, a row a width; and what a profile without a target is told."""

import json

import pandas as pd
import pytest

from tests.records import script


def deployed(method: str, top1: float) -> dict:
    """A record as `ptmq.suite.deploy.measure` writes it."""
    times = {"median": 2.0, "low": 1.0, "high": 3.0}
    latency = {
        "W4A4": times,
        "fp32": {**times, "median": 5.0},
        "switching": {"same": 2.0, "other": 2.25, "extra": 0.25},
    }
    line = {"width": "W4A4", "top1": top1, "model_top1": top1 + 1, "images": 100,
            "model": {"images": 100, "equal": 99.0, "largest_difference": 0.1},
            "simulation": {"images": 50, "equal": 100.0, "largest_difference": 0.0}}  # fmt: skip
    return {
        "run": {"backbone": "toy", "method": method, "variant": "default", "seed": 0}, "results": [line],
        "size": {"bytes": 2048, "fp32_bytes": 8192, "bits_per_weight": 9.5}, "latency": {"1": latency, "32": latency},
        "opening": {"file": {"ms": 7.0, "mib": 3.0, "peak_mib": 4.0}, "fp32": {"ms": 1.0}}, "floats": [["fc", "why"]],
        "kernels": {"integer": {"QLinearConv": 12, "QGemm": 2, "QLinearAdd": 4}, "float": {}, "branches": 2},
        "environment": {"threads": 1, "cpu": "a CPU", "vnni": True},
    }  # fmt: skip


@pytest.fixture
def table(tmp_path) -> pd.DataFrame:
    paths = []
    for number, (method, top1) in enumerate({"ptmq": 90.0, "nested": 91.0}.items()):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps(deployed(method, top1)))
    script("deploy", "--out", tmp_path, "--records", *paths)
    assert all((tmp_path / "figures" / f"deploy.{extension}").exists() for extension in ("pdf", "svg", "png"))
    return pd.read_csv(tmp_path / "tables" / "deploy.csv").set_index("method")


def test_a_row_a_width_with_the_numbers_of_its_record(table):
    assert list(table.index) == ["nested", "ptmq"] and list(table["top-1 of the file"]) == [91.0, 90.0]
    row = table.loc["ptmq"]
    assert row["times FP32, batch 1"] == 2.5 and row["ms, batch 32"] == 2.0
    assert (row["file [KiB]"], row["FP32 file [KiB]"], row["ms of a switch"]) == (2, 8, 0.25)
    assert (row["ms to load"], row["ms to load FP32"], row["MiB at the peak"]) == (7, 1, 4)
    assert row["integer kernels"] == 7 and row["in floating point"] == 1 and row["VNNI"] == "yes"
