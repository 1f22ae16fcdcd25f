"""Graph rewrites: folding, placing quantizers, cutting into units, on toys and on every registered backbone."""

import pytest
import torch
import torch.nn.functional as F
from conftest import Toy, toy_model, toy_network, vectors
from ptmq.suite.bit_operations import bit_operations
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.models.zoo import BACKBONES
from ptmq.network.layers import ActivationQuantizer, QuantizedLayer
from ptmq.network.model import MultiBitModel
from ptmq.network.trace import absorb_relus, extract, fold_norms, quantize_graph, to_units, trace
from ptmq.suite.bench import SHAPES


def test_batchnorm_folds_to_brecqs_numbers():
    v = vectors("bn_fold")
    conv, norm = nn.Conv2d(2, 2, 2, bias=False), nn.BatchNorm2d(2, eps=v["eps"])
    conv.weight.data = torch.tensor(v["weight"])
    for name, key in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
        getattr(norm, name).data = torch.tensor(v[key])
    folded = fold_norms(trace(nn.Sequential(conv, norm)))
    layer = folded.get_submodule("0")
    torch.testing.assert_close(layer.weight.data, torch.tensor(v["folded_weight"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.bias.data, torch.tensor(v["folded_bias"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(folded(torch.tensor(v["x"])).detach(), torch.tensor(v["y_after"]), atol=1e-6, rtol=0)


def test_quantizers_stand_where_a_deployment_quantizes():
    names = {unit.name: [n for n, m in unit.graph.named_modules() if isinstance(m, ActivationQuantizer)]
             for unit in toy_model().units}  # fmt: skip
    assert list(names) == ["stem", "blocks.0", "blocks.1", "head"]
    # a block: after its inner ReLU and after the ReLU of the sum; none before the sum; none on the logits
    assert [len(found) for found in names.values()] == [1, 2, 2, 0]


def test_a_quantizer_does_the_relu_that_nothing_else_reads():
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

    network, x = Relus(), 9 * torch.randn(4, 2, 3, 3)
    model = MultiBitModel(network, ["b", "c"], [BitWidth(4, 4)])
    assert [quantizer.relu for quantizer in model.quantizers] == [F.relu, F.relu6, None]
    assert not any("relu" in str(node.target) for unit in model.units for node in unit.graph.graph.nodes
                   if node.op in ("call_function", "call_module") and "quantizer" not in str(node.target))  # fmt: skip
    torch.testing.assert_close(model(x), network(x))


def test_a_relu_that_others_read_stays():
    """No backbone has one: all readers of what is quantized read the quantizer."""
    graph = trace(nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1)))
    quantize_graph(graph, dict.fromkeys(graph.graph.nodes, "all"), lambda layer, _: layer,
                   lambda _: ActivationQuantizer([4]))  # fmt: skip
    (quantizer,) = (m for m in graph.modules() if isinstance(m, ActivationQuantizer))
    relu = next(node for node in graph.graph.nodes if node.target == "1")
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


@pytest.mark.parametrize("network, absorbed", [(Skip(), 1), (Keyword(), 2)])
def test_relus_are_absorbed_where_the_network_stays_the_same(network, absorbed):
    x = torch.randn(8, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = network(x.clone())
    model = MultiBitModel(network, ["two"] if absorbed == 2 else ["first"], [BitWidth(8, 8)])
    assert sum(quantizer.relu is not None for quantizer in model.quantizers) == absorbed
    torch.testing.assert_close(model(x.clone()), expected)


def test_a_layer_without_an_activation_is_quantized_at_its_output():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(1, 2, 1), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

        def forward(self, x):
            return self.c(self.b(self.a(x)).mean((2, 3)))

    units = to_units(Linear(), ["b"], [4], [4])
    assert [sum(isinstance(m, ActivationQuantizer) for m in unit.modules()) for _, unit in units] == [1, 1, 0]


def test_first_and_last_layer_keep_8_bits():
    model = toy_model()
    model.search_steps(torch.randn(8, 2, 6, 6), "minmax")
    model.set_bits(3, 3)
    bits = {unit.name: ([m.bits for m in unit.layers], [m.bits for m in unit.quantizers]) for unit in model.units}
    assert bits["stem"] == ([8], [3])
    assert bits["blocks.0"] == ([3, 3], [3, 3])
    assert bits["blocks.1"] == ([3, 3], [3, 8])  # its output enters the last layer
    assert bits["head"] == ([8], [])


def test_the_network_itself_is_not_changed(images):
    network = toy_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    MultiBitModel(network, ["blocks.*"], [BitWidth(4, 4)])
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_every_backbone_folds_to_itself_and_is_covered(name):
    backbone = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = backbone.network().eval()
    for module in network.modules():  # norms worth folding
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            generator = torch.Generator().manual_seed(1)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.2, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    x = torch.randn(1, *SHAPES[backbone.dataset], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x)
        model = MultiBitModel(network, backbone.blocks, [BitWidth(4, 4)]).eval()
        assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules())
        assert len(list(model.layers)) == layers and len(model.units) > 2
        model.search_steps(x, "minmax")
        reached = []
        for module in model.modules():
            if isinstance(module, QuantizedLayer | ActivationQuantizer):
                module.register_forward_hook(lambda m, *_: reached.append(m))
        model.set_bits(4, 4)
        assert model(x).isfinite().all()
        assert len(set(reached)) == len(reached) == layers + len(list(model.quantizers))
        fixed = [layer for layer in model.layers if layer.fixed]
        assert {layer.bits for layer in fixed} == {8} and len(fixed) == 2 + ("distilled" in name), "the edges alone"
        # what every layer reads has a width of its own: pixels, or what a quantizer gave
        assert bit_operations(model, x) < 0.3 * bit_operations_of(model, x, 8)


def bit_operations_of(model: MultiBitModel, x: torch.Tensor, bits: int) -> int:
    """All layers at `bits` for weights and inputs."""
    macs = []
    hooks = [
        layer.register_forward_hook(lambda m, _, out: macs.append(out[0].numel() * m.weight[0].numel()))
        for layer in model.layers
    ]
    model(x)
    for hook in hooks:
        hook.remove()
    return sum(macs) * bits * bits


def test_softmax_is_quantized_where_it_is_asked_for():
    backbone = BACKBONES["digits_vit"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = backbone.network().eval()
    x = torch.randn(4, *SHAPES["digits"], generator=torch.Generator().manual_seed(0))
    plain, more = (MultiBitModel(network, backbone.blocks, [BitWidth(4, 4)], softmax=s).eval() for s in (False, True))
    blocks = len(plain.units) - 2
    assert len(list(more.quantizers)) == len(list(plain.quantizers)) + blocks, "one in every block"
    with torch.no_grad():
        torch.testing.assert_close(more(x), plain(x))
        for model in (plain, more):
            model.search_steps(x, "minmax")
            model.set_bits(4, 4)
        assert not torch.equal(more(x), plain(x))
    name = next(n for n, m in more.units[1].graph.named_modules() if "softmax" in n and hasattr(m, "zero_point"))
    quantizer = more.units[1].graph.get_submodule(name)
    assert quantizer.zero_point.item() == 0, "probabilities have one side"


class DataDependent(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Preactivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv, self.fc = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.conv(F.relu(self.norm(x))).mean((2, 3)))


class SharedConvolution(nn.Module):
    """Its convolution is read without its norm, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(2, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.fc((self.norm(x) + x).mean((2, 3)))


@pytest.mark.parametrize(
    "network, blocks, message",
    [
        (SharedConvolution(), ["conv"], "BatchNorm 'norm' does not directly follow"),
        (DataDependent(), ["x"], "DataDependent cannot be traced by torch.fx"),
        (Preactivation(), ["conv"], "BatchNorm 'norm' does not directly follow"),
        (Toy(), ["layers.*"], "no module of the backbone matches its blocks layers.*"),
        (Toy(), ["blocks.*.conv1"], "a unit has one of each"),
    ],
)
def test_what_cannot_be_cut_is_said(network, blocks, message):
    with pytest.raises(InputError, match=message.replace("*", r"\*")):
        to_units(network, blocks, [4], [4])


def test_extract_names_what_crosses_its_border():
    graph = trace(Toy())
    nodes = [node for node in graph.graph.nodes if node.op not in ("placeholder", "output")]
    with pytest.raises(InputError, match="unit 'two' has 2 inputs"):
        extract(graph, [node for node in nodes if node.name == "add"], "two")
