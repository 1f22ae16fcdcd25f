"""What all tests share: options, where they run, and images for the toy network. Importing this needs no torch."""

import os
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tensors are tiny, and a busy machine makes two threads far slower than one
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # a few small kernels are not worth a pool of processes
HERE = Path(__file__).parent
END_TO_END = HERE / "e2e"


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=1, help="how often a crash test kills each of its runs")
    parser.addoption(
        "--all-networks",
        action="store_true",
        help="what takes minutes: more networks of timm, transformers of size base, the profile of ImageNet",
    )
    parser.addoption("--slurm", action="store_true", help="run the workflow on a Slurm of this machine")
    parser.addoption("--kubernetes", action="store_true", help="run the workflow on Kubernetes' executor and a bucket")


def pytest_runtest_setup(item):
    """What is marked `large`, or `crash`, runs where it is asked for."""
    if item.get_closest_marker("large") and not item.config.getoption("--all-networks"):
        pytest.skip("--all-networks runs it")
    if item.get_closest_marker("crash") and item.config.getoption("--kills") == 1:
        pytest.skip("--kills runs it: make crash")


def pytest_ignore_collect(collection_path, config):
    """The end-to-end tests take minutes: they run where they are asked for by name."""
    asked = any(END_TO_END in [path := Path(arg.split("::")[0]).resolve(), *path.parents] for arg in config.args)
    return True if collection_path == END_TO_END and not asked else None


@pytest.fixture
def images():
    """For the toy network."""
    from tests.toys import toy_images

    return toy_images()


@pytest.fixture
def registered_toy(monkeypatch):
    """The name of the toy network's entry in the registry."""
    from ptmq.models.zoo import BACKBONES
    from tests.toys import TOY

    monkeypatch.setitem(BACKBONES, "toy", TOY)
    return "toy"


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A copy of the project after the one run that all tests look at. Who changes it puts it back."""
    from tests.projects import QUICK, copy_of_the_project, snakemake

    folder = copy_of_the_project(tmp_path_factory.mktemp("project"))
    done = snakemake(folder, "all", "--config", QUICK)
    assert done.returncode == 0, done.stderr
    return folder
