"""Models that leave the workflow as ONNX: calibrated for it, exported, measured, in a table and in runs.csv."""

import json

import pandas as pd
import pytest

from tests.projects import copy_of_the_project, snakemake

DEPLOYED = ["methods={nearest_mse: {settings: {target: onnx}}}", "only={methods: [nearest_mse]}"]
TARGETS = ["deploy", "results/digits/runs.csv"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_of_the_project(tmp_path_factory.mktemp("deploy"))


def test_files_are_exported_and_measured(folder):
    done = snakemake(folder, *TARGETS, "--config", *DEPLOYED)
    assert done.returncode == 0, done.stderr
    results = folder / "results" / "digits"
    (file,) = results.glob("onnx/**/*.onnx")
    (path,) = results.glob("deploy/**/*.json")
    record, table = json.loads(path.read_text()), pd.read_csv(results / "tables" / "deploy.csv")
    assert record["size"]["bytes"] == file.stat().st_size and record["floats"] == []
    assert list(table["width"]) == [line["width"] for line in record["results"]]
    assert (table["equal to float64 [%]"] >= 99.8).all() and (table["equal [%]"] >= 99).all()
    runs = pd.read_csv(results / "runs.csv")
    measured = runs[runs.method == "nearest_mse"]
    assert (measured.onnx_bytes == file.stat().st_size).all() and len(measured) == len(table)
    assert ((measured.onnx_top1 - measured.top1).abs() <= 100 - measured.onnx_equal + 1e-6).all()
    assert runs[runs.method == "fp32"].onnx_bytes.isna().all()
    again = snakemake(folder, *TARGETS, "--config", *DEPLOYED)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_default_run_includes_it(folder):
    done = snakemake(folder, "-n", "all", "--config", *DEPLOYED)
    assert done.returncode == 0 and "tables/deploy.csv" in done.stdout


def test_a_profile_without_the_target_is_told(folder):
    for target in ("onnx", "deploy"):
        done = snakemake(folder, target)
        assert done.returncode == 1 and "has no run with target: onnx" in done.stdout + done.stderr
