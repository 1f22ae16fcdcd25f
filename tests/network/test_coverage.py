"""Every parameter is quantized or named, and what is named decides."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from tests.toys import GROUPS, W4, W8, random_network, with_random_norms

WIDTHS = [BitWidth(3, 3), W4, W8]


class Everything(nn.Module):
    """(n, 3, 8, 8) -> (n, 5), with a bit of all that can hold parameters."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 2, 2, bias=False), nn.BatchNorm2d(8)
        self.alone, self.tokens = nn.BatchNorm2d(8), nn.LayerNorm(8)
        self.position, self.scale = nn.Parameter(torch.randn(1, 16, 8)), nn.Parameter(torch.rand(8))
        self.a, self.b, self.fc = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.auxiliary = nn.Linear(8, 3)

    def forward(self, x):
        x = self.alone(F.relu(self.norm(self.conv(x)))).flatten(2).transpose(1, 2) + self.position
        x = x + self.b(F.gelu(self.a(self.tokens(x)))) * self.scale
        if self.training:
            x = x + self.auxiliary(x).sum()
        return self.fc(x.mean(1))


class Contracted(nn.Module):
    """Weights of operations that are no layers."""

    def __init__(self):
        super().__init__()
        self.fc, self.out = nn.Linear(4, 4), nn.Linear(4, 2)
        self.core, self.gru = nn.Parameter(torch.randn(4, 3, 4)), nn.GRU(4, 4, batch_first=True)

    def forward(self, x):
        x = torch.einsum("nti,ijk->ntk", self.fc(x), self.core)
        return self.out(self.gru(x)[0].mean(1))


def model_of(build, example, **options):
    network = with_random_norms(random_network(build))
    return MultiBitModel(network, QuantizationSpec(None, WIDTHS, **options), example)


def everything(**options):
    return model_of(Everything, torch.zeros(1, 3, 8, 8), **options)


def contracted(**options):
    return model_of(Contracted, torch.randn(2, 3, 4), **options)


def test_every_parameter_is_in_one_row():
    rows = everything().coverage()
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in Everything().parameters())
    assert {row.layer: row.kind for row in rows} == {
        "conv": "Conv2d", "alone": "BatchNorm", "position": "parameter", "a": "Linear", "b": "Linear",
        "scale": "parameter", "fc": "Linear", "(biases of layers)": "biases", "(folded norms)": "norms",
        "auxiliary.weight": "parameter", "auxiliary.bias": "parameter",
    }  # fmt: skip
    said = {row.layer: (row.bits, row.reason) for row in rows}
    assert said["conv"] == ((8,), "first layer") and said["fc"] == ((8,), "last layer")
    assert said["a"] == ((3, 4, 8), "")
    assert said["position"] == ((32,), "element by element (add)")
    assert said["auxiliary.weight"] == ((32,), "not used at inference")
    assert "a fixed scale and shift" in said["alone"][1]


def test_as_text_it_is_a_table():
    head, ruler, *lines, last = str(everything().coverage()).splitlines()
    assert head.split() == ["layer", "kind", "parameters", "bits", "reason"] and set(ruler) <= {"-", " "}
    assert len(lines) == 11 and lines[0].split() == ["conv", "Conv2d", "96", "8", "first", "layer"]
    assert any(line.split() == ["a", "Linear", "64", "3,", "4,", "8"] for line in lines)
    assert last == "100.0% of the weights of layers, 264 of 496 parameters, are quantized."


def test_a_weight_that_is_left_out_is_refused_unless_it_is_named():
    with pytest.raises(
        InputError, match=r"5 weights would stay in floating point: core \(48 parameters, a weight of einsum,"
    ):
        contracted()
    loose = contracted(strict=False).coverage()
    left = {row.layer for row in loose if row.reason.startswith("left in floating point")}
    assert {"core", "gru.weight_ih_l0", "gru.weight_hh_l0"} <= left and 0 < loose.share < 0.5
    named = contracted(keep_fp=["core", "gru.*"]).coverage()
    assert [row.layer for row in named if row.is_quantized] == ["fc", "out"]


@torch.no_grad()
def test_a_layer_that_is_kept_is_the_layer_of_the_network():
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = everything(keep_fp="a")
    assert [row.reason for row in model.coverage() if row.layer == "a"] == ["kept in floating point by keep_fp"]
    assert model.coverage().share == pytest.approx(200 / 264)
    model.search_step_sizes(x, "minmax")
    model.set_bits(3, 3)
    assert [layer.bits for layer in model.layers] == [8, 3, 8]
    # what enters it alone is not quantized, either: before b, behind the residual sum that the last layer reads
    assert len(list(model.quantizers)) == len(list(everything().quantizers)) - 1
    assert not any(parameter.requires_grad for parameter in model.parameters())


def widths_of(model):
    model.set_bits(3, 3)
    return {row.layer: layer.bits for row, layer in zip((r for r in model.coverage() if r.is_quantized), model.layers,
                                                        strict=True)}  # fmt: skip


def test_rules_set_layers_apart_and_the_last_that_fits_counts():
    model = everything(rules={"*": "W4", "b": "W8A8", "fc": 6})
    model.search_step_sizes(torch.randn(4, 3, 8, 8), "minmax")
    assert widths_of(model) == {"conv": 4, "a": 4, "b": 8, "fc": 6}
    assert sorted(quantizer.bits for quantizer in model.quantizers) == [3, 8, 8]  # before b, before the last layer
    assert {row.reason for row in model.coverage() if row.is_quantized} == {"rules"}
    assert widths_of(everything(rules={"a": "FP"})) == {"conv": 8, "b": 3, "fc": 8}


@pytest.mark.parametrize("options, message", [
    ({"rules": {"fcc": "W8"}}, "rules: layer 'fcc' is unknown. Did you mean 'fc'?"),
    ({"keep_fp": ["heads.*"]}, r"keep_fp: layer 'heads.\*' is unknown."),
    ({"rules": {"fc": "eight"}}, "a rule must be 'FP', or widths such as 'W8A8' or 'W8'. Got 'eight'."),
    ({"rules": {"fc": "W9"}}, "weight bits must be 2..8, or 32 for floating point. Got 9."),
    ({"edges": "layer"}, "edges 'layer' is unknown. Did you mean 'layers'"),
    ({"keep_fp": ["*"]}, "there is nothing to quantize"),
])  # fmt: skip
def test_what_does_not_fit_is_said(options, message):
    with pytest.raises(InputError, match=message):
        everything(**options)


class Deep(nn.Module):
    """Three layers before the blocks, and three behind."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return F.relu(self.two(F.relu(self.one(x))) + x)

    def __init__(self):
        super().__init__()
        self.start = nn.Sequential(*(nn.Sequential(nn.Conv2d(n, 4, 1), nn.ReLU()) for n in (3, 4, 4)))
        self.blocks = nn.Sequential(self.Block(), self.Block())
        self.end = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))

    def forward(self, x):
        return self.end(self.blocks(self.start(x)).mean((2, 3)))


@pytest.mark.parametrize("blocks", [None, ["blocks.*"]])
@pytest.mark.parametrize("edges, expected, activations", [
    ("layers", [8, 3, 3, 3, 3, 3, 3, 3, 3, 8], [3, 3, 3, 3, 3, 3, 3, 3, 8]),
    ("units", [8, 8, 8, 3, 3, 3, 3, 8, 8, 8], [3, 3, 3, 3, 3, 3, 3, 8, 8]),
])  # fmt: skip
def test_edges_are_two_layers_or_two_units(blocks, edges, expected, activations):
    network = random_network(Deep)
    model = MultiBitModel(network, QuantizationSpec(blocks, WIDTHS, edges=edges), torch.randn(2, 3, 4, 4))
    model.set_bits(3, 3)
    assert [unit.name for unit in model.units] == ["stem", "blocks.0", "blocks.1", "head"]
    assert [layer.bits for layer in model.layers] == expected
    assert [quantizer.bits for quantizer in model.quantizers] == activations


class Dropped(nn.Module):
    """A dropout, as a function, between a softmax and the product that reads it."""

    def __init__(self):
        super().__init__()
        self.qkv, self.fc = nn.Linear(4, 12), nn.Linear(4, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        attention = F.dropout((q @ k.mT).softmax(-1), 0.1, self.training)
        return self.fc((attention @ v).mean(1))


@pytest.mark.parametrize("quantize_softmax", [False, True])
def test_a_softmax_is_known_behind_a_dropout(quantize_softmax):
    model = MultiBitModel(
        random_network(Dropped), QuantizationSpec(None, [W4], quantize_softmax=quantize_softmax), torch.randn(2, 3, 4)
    )
    assert len(list(model.quantizers)) == 4 + quantize_softmax  # q, k, v, what enters the last layer


def test_nothing_of_a_model_asks_for_gradients_until_it_learns():
    model = MultiBitModel(random_network(Deep), QuantizationSpec(None, GROUPS.widths), torch.randn(2, 3, 4, 4))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert any(isinstance(module, ActivationQuantizer) for module in model.modules())
