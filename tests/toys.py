"""A toy network and its models, numbers of the reference implementations, and small questions that many tests ask."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ptmq.common.bits import FULL_PRECISION, BitGroups, BitWidth
from ptmq.models.backbone import Backbone, Training
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec

ROOT = Path(__file__).parent.parent
VECTORS = ROOT / "tests" / "vectors"
CPU = torch.device("cpu")
GROUPS = BitGroups(("W3A3", "W4A4"), ("W5A5", "W6A6"), ("W7A7", "W8A8"))
W3, W4, W8 = (BitWidth(bits, bits) for bits in (3, 4, 8))

COMPILER = (shutil.which("g++") or shutil.which("clang++")) and Path(sysconfig.get_path("include"), "Python.h").exists()
needs_compiler = pytest.mark.skipif(not COMPILER, reason="torch.compile needs a C++ compiler and Python's headers")


def vectors(name: str) -> dict:
    """Inputs and outputs of a reference implementation; each file names its source."""
    return json.loads((VECTORS / f"{name}.json").read_text())


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


def random_network(build) -> nn.Module:
    """What `build` makes with random weights, always the same, in inference mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval()


def with_random_norms(network: nn.Module) -> nn.Module:
    """The network with BatchNorms and LayerNorms that are worth folding."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return network


def toy_network() -> nn.Module:
    """The toy with random weights, always the same."""
    return with_random_norms(random_network(Toy))


# In the registry where a test puts it there, so that models of the toy can be saved and loaded.
TOY = Backbone("tests.toys:toy_network", "digits", ("blocks.*",), mean=(0.0, 0.0), std=(1.0, 1.0), training=Training())


def toy_images(count: int = 48) -> Tensor:
    """Images of the toy's size, always the same."""
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def toy_model(widths=GROUPS.widths) -> MultiBitModel:
    """The toy cut into units, step sizes not set."""
    return MultiBitModel(toy_network(), QuantizationSpec(["blocks.*"], widths)).eval()


def searched_model(images: Tensor, widths=GROUPS.widths, search: str = "shrink") -> MultiBitModel:
    """The toy's model rounded to nearest."""
    model = toy_model(widths)
    model.search_step_sizes(images, search)
    return model


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, width: BitWidth) -> Tensor:
    """What a switchable model gives at a width."""
    model.set_bits(width.weight, width.activation)
    return model(images)


def error(model: nn.Module, images: Tensor, width: BitWidth = W3) -> float:
    """Squared error of the logits against those of the FP toy."""
    with torch.no_grad():
        return float((logits(model, images, width) - toy_network()(images)).square().mean())


@torch.no_grad()
def feature_error(model: MultiBitModel, images: Tensor, width: BitWidth = W3) -> float:
    """Squared error of what enters the head, before it is averaged, against floating point."""
    outputs = []
    for selected in (FULL_PRECISION, width):
        model.set_bits(selected.weight, selected.activation)
        outputs.append(nn.Sequential(*list(model.units)[:-1])(images))
    return float((outputs[0] - outputs[1]).square().mean())


def same_state(one: nn.Module, two: nn.Module) -> bool:
    """Whether two modules hold the same numbers, to the last bit."""
    other = two.state_dict()
    return all(torch.equal(value, other[key]) for key, value in one.state_dict().items())


def is_hard(model: MultiBitModel) -> bool:
    """Whether nothing is soft or dropped, and the weights of every width lie on their grid."""
    if any(q.drop is not None for q in model.quantizers) or any(la.quantizer.relaxation for la in model.layers):
        return False
    return all(on_the_grid(layer, bits) for layer in model.layers for bits in layer.quantizer.widths)


def on_the_grid(layer: nn.Module, bits: int) -> bool:
    """Whether a layer's weight is whole codes of its range, to float32's precision."""
    quantizer = layer.quantizer
    codes = layer.weight_at(bits) / quantizer.step_sizes()[bits] + quantizer.zero_points()[bits]
    return bool((codes - codes.round()).abs().max() < 1e-3 and codes.min() > -0.5 and codes.max() < 2**bits - 0.5)
