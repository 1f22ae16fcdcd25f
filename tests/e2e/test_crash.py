"""kill -9 at random moments, then the same command again: the results are those of a run that nobody disturbed.

One kill of PTMQ and of the workflow; `make crash` kills these and trainings twenty times each.
"""

import json
import shutil
import subprocess
import sys

import pytest

from tests.kills import kill_and_end, quantize, seconds_of, train
from tests.projects import QUICK, copy_of_the_project, jsons, without_times
from tests.toys import ROOT


@pytest.fixture
def kills(request) -> int:
    """How often each run is killed."""
    return request.config.getoption("--kills")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fp.safetensors"
    subprocess.run(train(path, 2), cwd=ROOT, check=True, capture_output=True)
    return path


@pytest.mark.parametrize("method, setting", [
    ("ptmq", "iterations=60"), pytest.param("multiquant", "epochs=4", marks=pytest.mark.crash),
])  # fmt: skip
def test_a_calibration(method, setting, weights, tmp_path, kills):
    seconds = seconds_of(quantize(method, setting, weights, tmp_path / "whole"), ROOT)
    kill_and_end(quantize(method, setting, weights, tmp_path / "killed"), ROOT, seconds, kills)
    whole, again = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == again.read_bytes()
    whole, again = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("whole", "killed"))
    assert without_times(whole) == without_times(again)
    assert not list((tmp_path / "killed").glob("unfinished*"))


@pytest.mark.crash
def test_a_training(tmp_path, kills):
    """A training goes on from its last epoch as a calibration does from its last block."""
    seconds = seconds_of(train(tmp_path / "whole.safetensors", 10), ROOT)
    kill_and_end(train(tmp_path / "killed.safetensors", 10), ROOT, seconds, kills)
    whole, again = (tmp_path / f"{name}.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == again.read_bytes()


def test_the_whole_workflow(project, tmp_path, kills):
    """With what the README says to type after a crash, beside the run that all tests look at."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-incomplete", "all", "--config", QUICK]
    again, out = copy_of_the_project(tmp_path / "killed"), project / "results/digits"
    seconds = (out / "mlflow.json").stat().st_mtime - (out / "profile.json").stat().st_mtime  # its last and first file
    unlock = [sys.executable, "-m", "snakemake", "--unlock"]
    kill_and_end(command, again, seconds, kills, unlock, lambda: shutil.rmtree(again / "results", ignore_errors=True))
    assert len(jsons(project)) == 2 + 3 + 1  # models, records, mixed precision
    for path in jsons(project):
        one, two = (json.loads((folder / path).read_text()) for folder in (project, again))
        assert without_times(one) == without_times(two), path
    tables = [(folder / "results/digits/tables/accuracy.csv").read_text().splitlines() for folder in (project, again)]
    for one, two in zip(*tables, strict=True):
        assert one.split(",")[:10] == two.split(",")[:10]
