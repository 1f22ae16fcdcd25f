"""A convolution that moves by two pixels over an image gives the same on blocks of pixels, to the last bit."""

import numpy as np
import pytest
import torch
from torch import nn

import ptmq
from ptmq.export import branch
from ptmq.export.session import Deployed, operators
from tests.toys import random_network

EVEN = {"size": 8, "kernel": 3, "stride": 2, "channels": 3}


class Stem(nn.Module):
    """A convolution of an image, and a head behind it."""

    def __init__(self, kernel: int, stride: int, channels: int, dilation: int = 1):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.stem = nn.Conv2d(channels, 6, kernel, stride, padding, dilation)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


def model_of(size, **how):
    """A model of three widths rounded to nearest, and its images."""
    images = torch.randn(24, how["channels"], size, size, generator=torch.Generator().manual_seed(4))
    network = random_network(lambda: Stem(**how))
    return ptmq.convert(network, images, ["W3A3", "W4A4", "W8A8"], target="onnx"), images.numpy()


def file_of(path, model, width=None):
    """The exported file, ready to run, and how often it moves pixels into blocks."""
    ptmq.export_onnx(model, path, width)
    return Deployed(path), operators(path).get("SpaceToDepth", 0)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
@pytest.mark.parametrize("width", [None, "W8A8"], ids=["all widths", "W8A8"])
def test_logits_stay_the_same(tmp_path, monkeypatch, kernel, width):
    model, images = model_of(**EVEN | {"kernel": kernel})
    blocks, moves = file_of(tmp_path / "blocks.onnx", model, width)
    assert moves == (1 if width else 3)  # once a branch
    monkeypatch.setattr(branch, "blocks_of", lambda part, shape: None)
    pixels, moves = file_of(tmp_path / "pixels.onnx", model, width)
    assert moves == 0
    for each in map(str, model.widths) if width is None else [width]:
        assert np.array_equal(blocks(images, each), pixels(images, each))


@pytest.mark.parametrize(
    "changed",
    [{"size": 7}, {"stride": 1}, {"kernel": 4}, {"channels": 8}, {"dilation": 2}],
    ids=["odd images", "by one pixel", "an even kernel", "many channels", "a kernel with gaps"],
)
def test_others_read_pixels(tmp_path, changed):
    model, images = model_of(**EVEN | changed)
    file, moves = file_of(tmp_path / "pixels.onnx", model, "W4A4")
    assert moves == 0 and np.isfinite(file(images)).all()


def test_a_convolution_in_floating_point_reads_pixels(tmp_path):
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    model = ptmq.convert(random_network(lambda: Stem(3, 2, 3)), images, "W4A4")
    file, moves = file_of(tmp_path / "float.onnx", model, "W4A4")
    assert moves == 0 and "stem" in dict(file.about["float"])
