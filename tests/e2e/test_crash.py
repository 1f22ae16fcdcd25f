"""kill -9 at random moments, then the same command again: the results are those of a run that nobody disturbed.

One kill of PTMQ and of the workflow; `make crash` kills these and trainings twenty times each.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tests.projects import QUICK, copy_of_the_project, jsons, without_times
from tests.toys import ROOT


def killed(command, folder, after: float) -> bool:
    """Start a command, kill it and all that it started after some seconds; False where it was done before."""
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return True
    return False


def kill_and_end(command, folder, seconds: float, kills: int, recover=None, start_over=lambda: None) -> None:
    """Kill a command at `kills` random moments of the seconds that it needs, then let it end."""
    moments = random.Random(0)
    while kills:
        if killed(command, folder, moments.uniform(0.1, 0.9) * seconds):
            kills -= 1
        else:  # it came to its end before; what is left of the next run is killed earlier
            seconds *= 0.8
            start_over()
        if recover:
            subprocess.run(recover, cwd=folder, capture_output=True, check=True)
    seconds_of(command, folder)


def seconds_of(command, folder) -> float:
    """How long an undisturbed run takes."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return time.perf_counter() - start


@pytest.fixture
def kills(request) -> int:
    """How often each run is killed."""
    return request.config.getoption("--kills")


@pytest.fixture
def only_when_asked(kills):
    """A training goes on from its last epoch as a calibration does from its last block, and takes as long to kill."""
    if kills == 1:
        pytest.skip("--kills runs it: make crash")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "fp.safetensors"
    subprocess.run(train(path, 2), cwd=ROOT, check=True, capture_output=True)
    return path


def train(out, epochs: int) -> list[str]:
    return [sys.executable, "-m", "ptmq", "train", "--backbone", "digits_resnet", "--set", f"epochs={epochs}",
            "--out", str(out)]  # fmt: skip


def quantize(method: str, setting: str, weights, out) -> list[str]:
    return [sys.executable, "-m", "ptmq", "quantize", "--profile", "workflow/config/digits.yaml", "--backbone",
            "digits_resnet", "--method", method, "--set", setting, "--weights", str(weights), "--out", str(out)]  # fmt: skip


@pytest.mark.parametrize("method, setting", [("ptmq", "iterations=60"), ("multiquant", "epochs=4")])
def test_a_calibration(method, setting, weights, tmp_path, kills, request):
    if method == "multiquant":
        request.getfixturevalue("only_when_asked")
    seconds = seconds_of(quantize(method, setting, weights, tmp_path / "whole"), ROOT)
    kill_and_end(quantize(method, setting, weights, tmp_path / "killed"), ROOT, seconds, kills)
    whole, again = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert whole.read_bytes() == again.read_bytes()
    whole, again = (json.loads((tmp_path / name / "model.json").read_text()) for name in ("whole", "killed"))
    assert without_times(whole) == without_times(again)
    assert not list((tmp_path / "killed").glob("unfinished*"))


@pytest.mark.usefixtures("only_when_asked")
def test_a_training(tmp_path, kills):
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
