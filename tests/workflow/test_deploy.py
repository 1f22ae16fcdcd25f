"""The table of exported files: numbers of the records, a row a width; and what a profile without a target is told."""

import json

import pandas as pd
import pytest

from tests.records import deployed, script


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
    assert (row["top-1 in float64"], row["images in float64"]) == (90.0, 50)
    assert row["integer kernels"] == 7 and row["in floating point"] == 1 and row["VNNI"] == "yes"
