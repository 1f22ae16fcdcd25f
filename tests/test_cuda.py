"""On a CUDA GPU: what a CPU computes within bounds, the same twice, and after a kill. Skipped without one; `make gpu`."""

import pytest
import torch

import ptmq
from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.common.device import open_device
from ptmq.common.provenance import ROOT
from tests.kills import kill_and_end, quantize, seconds_of, train
from tests.toys import error, logits, same_state, toy_network

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
DEVICE = "cuda"
METHODS = ["nearest_mse", "nearest_corrected", "nested", "ptmq"]
LEARNING = {"iterations": 30, "batch_size": 8}


def calibrated(method: str, images, device: str):
    """The toy, calibrated at two widths on a device; the model itself computes on the CPU."""
    open_device(device, 1)
    settings = LEARNING if method in ("nested", "ptmq") else {}
    model = ptmq.calibrate(
        toy_network(), images, method=method, widths=["W3A3", "W8A8"], device=device, seed=0, **settings
    )
    return model.cpu()


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_gives_the_same_twice(method, images):
    assert same_state(calibrated(method, images, DEVICE), calibrated(method, images, DEVICE))


@pytest.mark.parametrize("method", METHODS)
def test_a_calibration_is_near_that_of_a_cpu(method, images):
    """Sums in another order turn roundings, so models differ; what they lose differs by a quarter at most."""
    here, there = (calibrated(method, images, device) for device in ("cpu", DEVICE))
    torch.testing.assert_close(logits(there, images, FULL_PRECISION), logits(here, images, FULL_PRECISION))
    for width in (BitWidth(3, 3), BitWidth(8, 8)):
        assert error(there, images, width) == pytest.approx(error(here, images, width), rel=0.25)


def test_a_killed_calibration_goes_on_to_the_same_model(tmp_path):
    weights = tmp_path / "fp.safetensors"
    seconds_of([*train(weights, 2), "--device", DEVICE], ROOT)
    commands = {
        name: [*quantize("ptmq", "iterations=100", weights, tmp_path / name), "--device", DEVICE]
        for name in ("whole", "killed")
    }
    seconds = seconds_of(commands["whole"], ROOT)
    kill_and_end(commands["killed"], ROOT, seconds, kills=2)
    whole, killed = (tmp_path / name / "model.safetensors" for name in commands)
    assert whole.read_bytes() == killed.read_bytes()
