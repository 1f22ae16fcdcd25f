"""A convolution that moves by two pixels over an image gives the same on blocks of pixels, to the last bit."""

import numpy as np
import pytest
import torch
from torch import nn

import ptmq
from ptmq.export.frozen import simulate
from ptmq.export.graph import branch
from ptmq.export.session import Deployed, open_session, operators
from tests.toys import random_network

EVEN = {"size": (8, 12), "kernel": 3, "stride": 2, "channels": 3}


class Stem(nn.Module):
    """A convolution of an image, and a head behind it."""

    def __init__(self, kernel, stride: int, channels: int, dilation: int = 1, padding=None, groups: int = 1):
        super().__init__()
        padding = dilation * (kernel // 2) if padding is None else padding
        self.stem = nn.Conv2d(channels, 6, kernel, stride, padding, dilation, groups)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)).mean((2, 3)))


def model_of(size, **how):
    """A model of three widths rounded to nearest, and its images."""
    images = torch.randn(24, how["channels"], *size, generator=torch.Generator().manual_seed(4))
    network = random_network(lambda: Stem(**how))
    return ptmq.convert(network, images, ["W3A3", "W4A4", "W8A8"], target="onnx"), images


def file_of(path, model, width=None):
    """The exported file, ready to run, and how often a layer reads blocks, whose pixels are concatenated."""
    ptmq.export_onnx(model, path, width)
    return Deployed(path), operators(path).get("Concat", 0)


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_logits_stay_the_same(tmp_path, monkeypatch, kernel):
    model, images = model_of(**EVEN | {"kernel": kernel})
    blocks, cuts = file_of(tmp_path / "blocks.onnx", model, "W8A8")
    open_session(tmp_path / "blocks.onnx", optimized=tmp_path / "optimized.onnx")
    assert cuts == 1 and operators(tmp_path / "optimized.onnx")["QLinearConv"] == 1
    monkeypatch.setattr(branch, "blocks_of", lambda part, shape: None)
    pixels, cuts = file_of(tmp_path / "pixels.onnx", model, "W8A8")
    assert cuts == 0
    assert np.array_equal(blocks(images.numpy()), pixels(images.numpy()))


def test_every_width_of_one_file_reads_blocks(tmp_path):
    model, images = model_of(**EVEN)
    file, cuts = file_of(tmp_path / "all.onnx", model)
    assert cuts == 3  # once a branch
    for width in model.widths:
        expected = simulate(model, width)(images.double()).detach().numpy()
        assert np.allclose(file(images.numpy(), str(width)), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "changed",
    [
        *({"size": (7, 8)}, {"size": (8, 7)}, {"stride": 1}, {"kernel": 4}, {"kernel": (3, 5), "padding": (1, 2)}),
        *({"padding": 0}, {"channels": 4}, {"groups": 3}, {"dilation": 2}),
    ],
    ids=str,
)
def test_others_read_pixels(tmp_path, changed):
    model, images = model_of(**EVEN | changed)
    file, cuts = file_of(tmp_path / "pixels.onnx", model, "W8A8")
    expected = simulate(model, model.widths[-1])(images.double()).detach().numpy()
    assert cuts == 0 and np.allclose(file(images.numpy()), expected, atol=1e-5 * np.abs(expected).max())


def test_a_convolution_in_floating_point_reads_pixels(tmp_path):
    images = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(4))
    model = ptmq.convert(random_network(lambda: Stem(3, 2, 3)), images, "W4A4")
    file, cuts = file_of(tmp_path / "float.onnx", model, "W4A4")
    assert cuts == 0 and "stem" in dict(file.about["float"])
