"""Shared fixtures: numbers of the reference implementations, a toy network, the digits."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from ptmq.common.bits import BitGroups
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec

torch.set_num_threads(1)  # the tensors are tiny, and a busy machine makes two threads far slower than one
ROOT = Path(__file__).parent.parent
GROUPS = BitGroups(("W3A3", "W4A4"), ("W5A5", "W6A6"), ("W7A7", "W8A8"))

QUICK = "methods={ptmq: {settings: {steps: 3}}}"  # of a run of the workflow
PROJECT = ("Snakefile", "workflow", "ptmq", "baselines", "pyproject.toml", "environment.yml")


COMPILER = (shutil.which("g++") or shutil.which("clang++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
needs_compiler = pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler and Python's headers")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=1, help="how often a crash test kills each of its runs")
    parser.addoption("--slurm", action="store_true", help="run the workflow on a Slurm of this machine")
    parser.addoption("--kubernetes", action="store_true", help="run the workflow on Kubernetes' executor and a bucket")


@pytest.fixture(scope="session")
def kills(request) -> int:
    return request.config.getoption("--kills")


def vectors(name: str) -> dict:
    """Inputs and outputs of a reference implementation; each file names its source."""
    return json.loads((ROOT / "tests" / "vectors" / f"{name}.json").read_text())


class Toy(nn.Module):
    """A stem, two residual blocks with BatchNorm, a head: (n, 2, 6, 6) -> (n, 4)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

        def forward(self, x):
            out = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(out)) + x)

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.fc(x.mean((2, 3)))


def toy_network(seed: int = 0) -> nn.Module:
    """A toy whose BatchNorms have statistics worth folding."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Toy()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


def toy_model(widths=GROUPS.widths) -> MultiBitModel:
    """The toy cut into units, step sizes not set."""
    return MultiBitModel(toy_network(), QuantizationSpec(["blocks.*"], widths)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(48, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def snakemake(folder, *args, **environment) -> subprocess.CompletedProcess:
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
    profile["methods"] = {name: profile["methods"][name] for name in ("nearest_mse", "ptmq")}
    path.write_text(yaml.safe_dump(profile, sort_keys=False))
    return folder


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A copy of the project after one run of everything. Who changes it puts it back, or changes a copy."""
    folder = copy_of_the_project(tmp_path_factory.mktemp("project"))
    done = snakemake(folder, "all", "--config", QUICK)
    assert done.returncode == 0, done.stderr
    return folder


def copy_of_results(project: Path, folder: Path) -> Path:
    """A copy of a project with its results, but for what MLflow has: it knows where it lies."""
    ignore = shutil.ignore_patterns("mlflow", "mlflow.db", "mlflow.json")
    return Path(shutil.copytree(project, folder, ignore=ignore))
