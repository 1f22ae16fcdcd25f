"""A trained network of the digits and a calibrated one, once for all tests of the stages."""

import pytest

from ptmq.suite.calibration import calibrate
from ptmq.suite.evaluation import evaluate_fp
from ptmq.suite.profile import Run
from ptmq.training.floating_point import train_backbone
from tests.toys import CPU

GROUPS = {"low": ["W3A3"], "medium": ["W5A5"], "high": ["W8A8"]}
BATCHES = 7  # whole ones of 128 in the 1,000 training images


def run_of(method: str, **settings) -> Run:
    """A run of a method at three widths on the digits."""
    widths = tuple(width for group in GROUPS.values() for width in group)
    groups = GROUPS if method == "ptmq" else None
    return Run("p", "digits", "digits_resnet", method, "default", widths, groups, 0, settings, calibration_images=64)


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Of digits_resnet after a few epochs."""
    path = tmp_path_factory.mktemp("fp") / "w.safetensors"
    train_backbone("digits_resnet", {"epochs": 3}, 0, None, path, CPU)
    return path


@pytest.fixture(scope="session")
def fp_outputs(weights, tmp_path_factory):
    """What it gives for the test images."""
    path = tmp_path_factory.mktemp("fp") / "outputs.safetensors"
    evaluate_fp("digits_resnet", weights, "test", path, None, CPU)
    return path


@pytest.fixture(scope="session")
def calibrated(weights, tmp_path_factory):
    """The folder of its model by PTMQ."""
    out = tmp_path_factory.mktemp("model")
    calibrate(run_of("ptmq", iterations=4), weights, None, out, CPU)
    return out


@pytest.fixture(scope="session")
def make_run():
    """`run_of`, for tests."""
    return run_of
