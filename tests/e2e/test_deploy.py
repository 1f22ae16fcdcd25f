"""Models that leave the workflow as ONNX: calibrated for it, exported, measured, in a table."""

import json

import pandas as pd
import pytest

from tests.projects import copy_of_the_project, snakemake

ONE = ["only={backbones: [digits_resnet], methods: [nearest_mse]}"]
PROFILE = ["--configfile", "workflow/config/digits_deploy.yaml"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return copy_of_the_project(tmp_path_factory.mktemp("deploy"))


def test_files_are_exported_and_measured(folder):
    done = snakemake(folder, "deploy", *PROFILE, "--config", *ONE)
    assert done.returncode == 0, done.stderr
    results = folder / "results" / "digits_deploy"
    (file,) = results.glob("onnx/**/*.onnx")
    (path,) = results.glob("deploy/**/*.json")
    record, table = json.loads(path.read_text()), pd.read_csv(results / "tables" / "deploy.csv")
    assert record["size"]["bytes"] == file.stat().st_size and record["floats"] == []
    assert list(table["width"]) == [line["width"] for line in record["results"]]
    assert (table["equal to float64 [%]"] >= 99.8).all() and (table["top-1 of the file"] > 80).all()
    again = snakemake(folder, "deploy", *PROFILE, "--config", *ONE)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_a_profile_without_the_target_is_told(folder):
    done = snakemake(folder, "onnx")
    assert done.returncode == 1 and "has no run with target: onnx" in done.stdout + done.stderr
