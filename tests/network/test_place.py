"""Where quantizers stand, which ReLUs they do, and what is at an edge."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec, absorb_relus, quantize_graph
from ptmq.network.trace import trace
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from tests.toys import W4, W8, random_network, searched_model, toy_model


def quantized(network: nn.Module, blocks, width=W4) -> MultiBitModel:
    return MultiBitModel(network, QuantizationSpec(blocks, [width]))


def test_quantizers_stand_where_a_deployment_quantizes():
    names = {unit.name: [n for n, m in unit.graph.named_modules() if isinstance(m, ActivationQuantizer)]
             for unit in toy_model().units}  # fmt: skip
    assert list(names) == ["stem", "blocks.0", "blocks.1", "head"]
    # a block: after its inner ReLU and after the ReLU of the sum; none before the sum; none on the logits
    assert [len(found) for found in names.values()] == [1, 2, 2, 0]


def test_first_and_last_layer_keep_8_bits(images):
    model = searched_model(images)
    model.set_bits(3, 3)
    bits = {unit.name: ([m.bits for m in unit.layers], [m.bits for m in unit.quantizers]) for unit in model.units}
    assert bits["stem"] == ([8], [3])
    assert bits["blocks.0"] == ([3, 3], [3, 3])
    assert bits["blocks.1"] == ([3, 3], [3, 8])  # its output enters the last layer
    assert bits["head"] == ([8], [])


def test_a_layer_without_an_activation_is_quantized_at_its_output():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x)).mean((2, 3)))

    assert [len(unit.quantizers) for unit in quantized(Linear(), ["b"]).units] == [1, 1, 0]


class Relus(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.relu6 = nn.ReLU6()

    def forward(self, x):
        x = F.relu(self.a(x))
        x = self.relu6(self.b(x))
        x = F.silu(self.c(x))
        return self.d(x).sum((2, 3))


def test_a_quantizer_does_the_relu_that_nothing_else_reads():
    network, x = random_network(Relus), 9 * torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    model = quantized(network, ["b", "c"])
    assert [quantizer.relu for quantizer in model.quantizers] == [F.relu, F.relu6, None]
    assert not any("relu" in str(node.target) for unit in model.units for node in unit.graph.graph.nodes
                   if node.op in ("call_function", "call_module") and "quantizer" not in str(node.target))  # fmt: skip
    torch.testing.assert_close(model(x), network(x))


def test_a_relu_that_others_read_stays():
    """No backbone has one: all readers of what is quantized read the quantizer."""
    graph = trace(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)))
    units = dict.fromkeys(graph.graph.nodes, "all")
    spec = QuantizationSpec([], [W4])
    quantize_graph(graph, units, spec, lambda layer, _: layer, lambda _: ActivationQuantizer([4]))
    (quantizer,) = (m for m in graph.modules() if isinstance(m, ActivationQuantizer))
    relu = next(node for node in graph.graph.nodes if node.target is F.relu)
    output = next(node for node in graph.graph.nodes if node.op == "output")
    output.args = ((output.args[0], relu),)
    absorb_relus(graph)
    assert quantizer.relu is None and relu in graph.graph.nodes


class Skip(nn.Module):
    """A ReLU in place changes what the sum reads."""

    def __init__(self):
        super().__init__()
        self.first, self.one, self.two, self.fc = (nn.Conv2d(2, 2, 1) for _ in range(4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = self.first(x)
        return self.fc(self.two(self.relu(self.one(self.relu(x)))) + x).sum((2, 3))


class Keyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Conv2d(2, 2, 1) for _ in range(3))
        self.relu = nn.ReLU()

    def forward(self, x):
        return self.three(torch.relu(input=self.two(self.relu(input=self.one(x))))).sum((2, 3))


@pytest.mark.parametrize("build, block, absorbed", [(Skip, "first", 2), (Keyword, "two", 2)])
def test_relus_are_absorbed_where_the_network_stays_the_same(build, block, absorbed):
    network, x = random_network(build), torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = network(x.clone())
    model = quantized(network, [block], W8)
    assert sum(quantizer.relu is not None for quantizer in model.quantizers) == absorbed
    torch.testing.assert_close(model(x.clone()), expected)


def test_a_spec_orders_its_widths_and_needs_one():
    spec = QuantizationSpec(["b"], ["W8A8", BitWidth(3, 4)])
    assert (spec.weight_bits, spec.activation_bits) == ([3, 8], [4, 8])
    with pytest.raises(InputError, match="needs at least one width"):
        QuantizationSpec(["b"], [])
