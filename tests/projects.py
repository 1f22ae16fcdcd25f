"""Copies of the project that Snakemake runs in. The networks are real and tiny budgets make the runs quick."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.toys import ROOT

QUICK = "methods={ptmq: {settings: {iterations: 3}}}"  # of a run of the workflow
# What may differ between two runs of the same; the commit, because somebody may edit the code meanwhile.
TIMES = re.compile("seconds|_ms$|_mb$|^load_|^commit$")
PROJECT = ("Snakefile", "workflow", "ptmq", "baselines", "pyproject.toml", "environment.yml")


def snakemake(folder: Path, *args: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Snakemake in a folder."""
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | environment)


def copy_of_the_project(folder: Path) -> Path:
    """A project with one backbone, two methods and a network of one epoch."""
    folder.mkdir(exist_ok=True)
    for name in PROJECT:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    path = folder / "workflow/config/digits.yaml"
    profile = yaml.safe_load(path.read_text())
    backbone = profile["backbones"]["digits_resnet"]
    profile["backbones"] = {"digits_resnet": {**backbone, "training": {"epochs": 1}}}
    profile["calibration_images"] = 64
    profile["methods"] = {name: profile["methods"][name] for name in ("nearest_mse", "ptmq")}
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return folder


def copy_of_results(project: Path, folder: Path) -> Path:
    """A copy of a project with its results, but for what MLflow has: it knows where it lies."""
    ignore = shutil.ignore_patterns("mlflow", "mlflow.db", "mlflow.json")
    return Path(shutil.copytree(project, folder, ignore=ignore))


def planned(done: subprocess.CompletedProcess) -> dict[str, set[str]]:
    """The rules that a dry run would run, and why: the reasons of their jobs, without names of files."""
    found: dict[str, set[str]] = {}
    for rule, body in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", done.stdout, re.MULTILINE):
        (reason,) = re.findall(r"    reason: (.*)", body) or [""]
        found.setdefault(rule, set()).update(re.findall(r"(?:^|; ?)([\w ]+?)(?: since last execution|:|$)", reason))
    return found


def without_times(content):
    """What a record says, but for times, memory and how busy the machine was."""
    if isinstance(content, dict):
        return {key: without_times(value) for key, value in content.items() if not TIMES.search(key)}
    return [without_times(value) for value in content] if isinstance(content, list) else content


def jsons(project: Path) -> list[Path]:
    """What the workflow wrote of every run, but for MLflow's copies."""
    folders = [project / "results/digits" / name for name in ("models", "records", "mixed")]
    return sorted(path.relative_to(project) for folder in folders for path in folder.rglob("*.json"))
