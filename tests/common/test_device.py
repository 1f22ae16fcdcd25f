"""The device that is asked for, or a sentence."""

import pytest
import torch

from ptmq.common.device import open_device
from ptmq.common.errors import InputError

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")


def test_auto_is_the_gpu_where_there_is_one():
    assert open_device("auto", 1).type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert open_device("cpu", 1).type == "cpu"


def test_the_threads_are_those_asked_for():
    try:
        open_device("cpu", 2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("name, threads, message", [
    ("tpu", 1, "device must be cpu, cuda or auto. Got 'tpu'."),
    ("cpu", 0, "--threads must be at least 1. Got 0."),
    pytest.param("cuda", 1, "torch finds no CUDA GPU. Set device: cpu, or auto.", marks=needs_no_cuda),
])  # fmt: skip
def test_what_there_is_not_is_said(name, threads, message):
    with pytest.raises(InputError, match=message):
        open_device(name, threads)
