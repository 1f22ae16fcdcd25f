"""A graph is traced and cut into units with one input and one output, or the reason is said."""

import pytest
import torch
from torch import nn

from ptmq.common.errors import InputError
from ptmq.network.cut import extract, to_layers, to_units
from ptmq.network.place import QuantizationSpec
from ptmq.network.trace import trace
from tests.toys import W4, Toy, toy_model, toy_network


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize("build, blocks, message", [
    (DataDependent, ["x"], "DataDependent cannot be traced: forward.. decides by the values of a tensor"),
    (Toy, ["layers.*"], r"no module of the backbone matches its blocks layers.\*"),
    (Toy, ["blocks.*.conv1"], "a unit has one of each"),
])  # fmt: skip
def test_what_cannot_be_cut_is_said(build, blocks, message):
    with pytest.raises(InputError, match=message):
        to_units(build(), QuantizationSpec(blocks, [W4]))


def test_extract_names_what_crosses_its_border():
    graph = trace(Toy())
    nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    with pytest.raises(InputError, match="unit 'two' has 2 inputs"):
        extract(graph, [node for node in nodes if node.name == "add"], "two")


def test_units_one_after_the_other_are_the_network(images):
    network = toy_network()
    x = images
    for _, unit in to_units(network, QuantizationSpec(["blocks.*"], [W4])):
        x = unit(x)
    torch.testing.assert_close(x, network(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("blocks, names", [
    (["blocks.*"], ["stem", "blocks.0", "blocks.1", "head"]),
    (["blocks.1"], ["stem", "blocks.1", "head"]),
    (["blocks"], ["stem", "blocks", "head"]),
])  # fmt: skip
def test_blocks_are_named_by_the_profile(blocks, names):
    assert [name for name, _ in to_units(toy_network(), QuantizationSpec(blocks, [W4]))] == names


def test_a_layer_comes_with_what_directly_follows_it():
    block = toy_model().units[1]
    (first, conv1), (second, conv2) = to_layers(block.graph)
    assert (first, second) == ("blocks.0.conv1", "blocks.0.conv2")
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(conv1(x).min()) == 0, "a ReLU follows the first convolution of a block"
        assert float(conv2(x).min()) < 0, "the residual sum comes between the second and its ReLU"
    assert conv1.get_submodule(first) is block.layers[0], "the part's layer is the model's"


class Optional(nn.Module):
    """An argument that has a default, and an assertion about the size."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x, mask=None):
        torch._assert(x.shape[1] == 3, "three channels")
        return self.fc(x) if mask is None else self.fc(x * mask)


def test_optional_arguments_and_assertions_are_traced_away():
    network = Optional()
    graph = trace(network)
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    x = torch.ones(4, 3)
    assert torch.equal(graph(x), network(x))
