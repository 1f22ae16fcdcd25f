"""Many processes at one set of results: nothing is read half, doubled or lost."""

import json
import multiprocessing
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from ptmq.common.files import write_json
from tests.projects import copy_of_the_project, snakemake
from tests.records import Results, record
from tests.toys import ROOT

JOBS, RECORDS, TIMES = 8, 6, 40


def job(number: int, results: Results) -> None:
    """One job of eight: it writes its records again and again, each time with another content."""
    for time_ in range(TIMES):
        for seed in range(RECORDS):
            body = record("ptmq", {"W3A3": 80.0 + time_ / 100, "W8A8": 91.0}, seed, run={"variant": f"job{number}"})
            body["padding"] = ["x" * 100] * (100 + time_)  # takes some time to write
            write_json(results.path("ptmq", seed, variant=f"job{number}"), body)


def test_eight_jobs_write_while_one_collects(tmp_path):
    results = Results(tmp_path)
    context = multiprocessing.get_context("fork")
    jobs = [context.Process(target=job, args=(number, results)) for number in range(JOBS)]
    results.names = [
        f"toy/ptmq/job{number}/multi/seed{seed}:W3A3,W8A8" for number in range(JOBS) for seed in range(RECORDS)
    ]
    for each in jobs:
        each.start()
    collected = 0
    while any(each.is_alive() for each in jobs) or not collected:
        runs = results.collect("--partial")
        assert len(runs) == 2 * JOBS * RECORDS and runs[runs.status == "done"].top1.notna().all()
        collected += 1
    assert all(each.exitcode == 0 for each in jobs)
    runs = results.collect()
    assert runs[runs.w_bits == 3].top1.eq(80.0 + (TIMES - 1) / 100).all(), "the last writing of every record"
    assert not list(tmp_path.rglob(".*.json.*")), "temporary files"


def test_two_runs_of_one_calibration_at_once_give_the_result_of_one(tmp_path):
    python = [sys.executable, "-m", "ptmq"]
    weights = tmp_path / "fp.safetensors"
    train = [*python, "train", "--backbone", "digits_resnet", "--set", "epochs=1", "--out", str(weights)]
    subprocess.run(train, cwd=ROOT, check=True, capture_output=True)
    quantize = [*python, "quantize", "--profile", "workflow/config/digits.yaml", "--backbone", "digits_resnet",
                "--method", "ptmq", "--set", "iterations=20", "--weights", str(weights), "--out"]  # fmt: skip
    folders = [tmp_path / "alone", tmp_path / "both", tmp_path / "both"]
    running = [subprocess.Popen([*quantize, str(folder)], cwd=ROOT, stderr=subprocess.PIPE) for folder in folders]
    for process in running:
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
    alone, both = ((folder / "model.safetensors").read_bytes() for folder in folders[:2])
    assert alone == both and not list((tmp_path / "both").glob("unfinished*"))


def test_two_workflows_in_one_folder_are_told_apart(tmp_path):
    project = copy_of_the_project(tmp_path)
    longer = ["--config", "backbones={digits_resnet: {training: {epochs: 10}}}"]
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "results/digits/weights/digits_resnet.safetensors"]
    command += longer
    with subprocess.Popen(command, cwd=project, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as first:
        while not (project / "results/digits/logs/train/digits_resnet.log").exists() and first.poll() is None:
            time.sleep(0.05)
        second = snakemake(project, "all", *longer)
        _, said = first.communicate()
        assert first.returncode == 0, said.decode()
    assert second.returncode and "Directory cannot be locked" in second.stderr and "--unlock" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.fixture
def server(tmp_path):
    """The address of an MLflow tracking server on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{tmp_path}/server.db",
               "--artifacts-destination", str(tmp_path / "artifacts")]  # fmt: skip
    said = (tmp_path / "server.log").open("w")
    with subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said) as process:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=1)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.5)
        yield uri
        process.terminate()


def test_a_tracking_server_takes_everything_once(server, tmp_path, capsys):
    import mlflow

    results = Results(tmp_path / "results")
    results.add(record("fp32", {"W32A32": 92.0}, label="W32A32"))
    for seed in (0, 1):
        results.add(record("ptmq", {"W3A3": 80.0 + seed, "W8A8": 91.0}, seed))
    results.collect()
    for expected in ("3 new of 3", "0 new of 3", "0 new of 3"):
        results.log(server)
        assert expected in capsys.readouterr().out
    results.add(record("qdrop", {"W3A3": 82.0}, label="W3A3"))
    results.log(server)
    assert "1 new of 4" in capsys.readouterr().out
    client = mlflow.MlflowClient(server)
    runs = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert len(runs) == 4 + 2 and len({run.info.run_name for run in runs}) == 6
    (one,) = [run for run in runs if run.info.run_name == "toy/ptmq/default/multi/seed1"]
    assert one.data.metrics["top1_W3A3"] == 81.0
    local = client.download_artifacts(one.info.run_id, "seed1.json", str(tmp_path))
    assert json.loads(Path(local).read_text())["results"][0]["top1"] == 81.0
