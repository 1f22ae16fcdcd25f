"""Whatever a network does in Python is followed, or refused in a sentence: the FP units are the network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.network.trace import trace
from tests.network.odd_networks import (
    AddInPlace,
    Attention,
    Fill,
    FunctionalWeights,
    FunctionInPlace,
    Keywords,
    LinearTwice,
    Net,
    NormFirst,
    NormOfFlatTokens,
    NormOfTokens,
    NormShared,
    NormTwice,
    Operators,
    OtherLayers,
    ReadTwice,
    ReluInPlace,
    Sizes,
    Slices,
    Standardised,
    TwoNorms,
    Views,
    pictures,
    random,
)

W4 = BitWidth(4, 4)


FOLLOWED = [
    NormTwice, TwoNorms, NormShared, ReadTwice, NormFirst, AddInPlace, ReluInPlace, FunctionInPlace, Operators, Views,
    Fill, Keywords, Sizes, FunctionalWeights, Standardised, OtherLayers, LinearTwice, Slices, NormOfTokens,
    NormOfFlatTokens, Attention,
]  # fmt: skip


@pytest.mark.parametrize("build", FOLLOWED)
@torch.no_grad()
def test_the_units_are_the_network_and_hold_all_weights(build):
    network, x = random(build), pictures()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    model = MultiBitModel(network, QuantizationSpec(None, [W4]), x[:1])
    for count in (1, 4, 5):
        expected = network(x[:count].clone())
        torch.testing.assert_close(model(x[:count]), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    assert model.coverage().share == 1
    assert torch.equal(x, pictures()), "nothing writes into what it is given"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    model.search_step_sizes(x, "minmax")
    model.set_bits(4, 4)
    assert model(x).isfinite().all()


@pytest.mark.parametrize("build", FOLLOWED)
@torch.no_grad()
def test_a_model_is_loaded_into_that_of_other_weights_and_goes_to_another_device(build):
    x = pictures()
    model = MultiBitModel(random(build), QuantizationSpec(None, [W4]), x)
    model.search_step_sizes(x, "minmax")
    other = MultiBitModel(build(), QuantizationSpec(None, [W4]), x)
    other.load_state_dict(model.state_dict())
    for bits in (32, 4):
        model.set_bits(bits, bits)
        other.set_bits(bits, bits)
        assert torch.equal(other(x), model(x))
    model.set_bits(32, 32)
    assert model.to("meta")(x.to("meta")).shape == other(x).shape, "nothing stays on the CPU"


@torch.no_grad()
@pytest.mark.parametrize("build", [AddInPlace, ReluInPlace, FunctionInPlace, Operators, Views])
def test_no_unit_writes_into_its_input(build):
    model = MultiBitModel(random(build), QuantizationSpec(None, [W4]), pictures())
    x = pictures()
    for unit in model.units:
        before = x.clone()
        out = unit(x)
        assert torch.equal(x, before), unit.name
        x = out


def test_a_norm_behind_two_layers_is_folded_into_both_and_one_behind_a_layer_that_others_read_stays():
    def kinds(build):
        return [row.kind for row in MultiBitModel(random(build), QuantizationSpec(None, [W4])).coverage()]

    assert "BatchNorm" not in kinds(NormShared) and "BatchNorm" not in kinds(TwoNorms)
    assert "BatchNorm" not in kinds(NormOfFlatTokens)
    assert kinds(ReadTwice).count("BatchNorm") == kinds(NormOfTokens).count("BatchNorm") == 1
    assert kinds(NormFirst).count("BatchNorm") == 2


def test_a_layer_that_is_called_twice_is_a_layer_a_call():
    names = [row.layer for row in MultiBitModel(random(TwoNorms), QuantizationSpec(None, [W4])).coverage()]
    assert names[:4] == ["first", "c", "c_2", "fc"]


class Values(Net):
    def body(self, x):
        return self.c(x) if x.sum() > 0 else x


class NumPy(Net):
    def body(self, x):
        return self.c(torch.from_numpy(x.detach().numpy() * 2))


def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2


class Scripted(Net):
    def __init__(self):
        super().__init__()
        self.double = torch.jit.script(double)

    def body(self, x):
        return self.c(self.double(x))


class Chance(Net):
    def body(self, x):
        return self.c(x + torch.rand(8, 8))


class MonteCarlo(Net):
    def body(self, x):
        return self.c(F.dropout(x, 0.5, training=True))


class BatchStatistics(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def body(self, x):
        return self.norm(self.c(x))


class NumberOfImages(Net):
    def body(self, x):
        return self.c(x) / (len(x) + 1)


class OutArgument(Net):
    def body(self, x):
        y = self.c(x)
        torch.add(x, 1, out=y)
        return y


class TwoInputs(Net):
    def forward(self, x, y):
        return super().forward(x + y)


class TwoOutputs(Net):
    def forward(self, x):
        return self.c(self.first(x)), x


class NoLayer(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


class Unfitting(Net):
    def body(self, x):
        return self.c(x[:, :2])


@pytest.mark.parametrize("build, message", [
    (Values, "Values cannot be traced: forward.. decides by the values of a tensor"),
    (NumPy, "NumPy cannot be traced: forward.. decides by the values of a tensor .Tensor.numpy"),
    (Scripted, "computes a tensor in a way that is not followed, such as a scripted function"),
    (Chance, "computes at random"),
    (MonteCarlo, "unit 'stem' does not compute what MonteCarlo computes there"),
    (BatchStatistics, "module 'norm': a BatchNorm without running statistics gives every image a result that depends"),
    (NumberOfImages, "depends on the number of images: 3 for 2 images, 4 for 3"),
    (OutArgument, r"writes into a tensor by add\(out=...\)"),
    (TwoInputs, "TwoInputs.forward must take one input, the images. Got 2: x, y."),
    (TwoOutputs, "the network must give one tensor, the logits. Got 2."),
    (NoLayer, "the network has no convolution or linear layer: there is nothing to quantize."),
    (Unfitting, "Unfitting cannot be traced: with images of shape .3, 8, 8. it raises RuntimeError"),
])  # fmt: skip
def test_what_cannot_be_followed_is_said(build, message):
    with pytest.raises(InputError, match=message):
        MultiBitModel(random(build), QuantizationSpec(None, [W4]), pictures())


@pytest.mark.parametrize("example, message", [
    (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "floating-point numbers. Got torch.uint8 of shape .2, 3, 8, 8."),
    (torch.zeros(0, 3, 8, 8), "Got torch.float32 of shape .0, 3, 8, 8."),
    ("picture", "the example must be images, .n, ...., as floating-point numbers. Got str."),
])  # fmt: skip
def test_an_example_is_images(example, message):
    with pytest.raises(InputError, match=message):
        trace(random(TwoNorms), example)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_a_network_of_another_precision_is_quantized_in_float32_and_stays_what_it_is(dtype):
    network = random(TwoNorms).to(dtype)
    model = MultiBitModel(network, QuantizationSpec(None, [W4]))
    assert {p.dtype for p in network.parameters()} == {dtype}
    assert model(pictures()).dtype == torch.float32
    torch.testing.assert_close(model(pictures()), network.float()(pictures()), atol=1e-5, rtol=1e-5)


def test_the_network_that_was_given_stays_as_it_is():
    network = random(NormTwice).train()
    network.c.eval()
    network.fc.weight.requires_grad_(False)
    modes = [module.training for module in network.modules()]
    asked = [parameter.requires_grad for parameter in network.parameters()]
    state, x = torch.get_rng_state(), pictures()
    model = MultiBitModel(network, QuantizationSpec(None, [W4]), x)
    assert [module.training for module in network.modules()] == modes
    assert [parameter.requires_grad for parameter in network.parameters()] == asked
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(x, pictures())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


class Caches(Net):
    """Keeps what it computed at its first call."""

    cache = None

    def body(self, x):
        if self.cache is None:
            self.cache = self.c.weight * 2
        return F.conv2d(x, self.cache, padding=1)


@torch.no_grad()
def test_what_a_network_keeps_for_itself_is_followed_and_left_to_it():
    network = random(Caches)
    model = MultiBitModel(network, QuantizationSpec(None, [W4]), pictures())
    assert network.cache is None
    torch.testing.assert_close(model(pictures()), network(pictures()))


@torch.no_grad()
def test_a_wrapper_is_seen_through():
    network = random(TwoNorms)
    model = MultiBitModel(nn.DataParallel(network), QuantizationSpec(None, [W4]), pictures())
    assert [row.layer for row in model.coverage()][:2] == ["first", "c"]
    torch.testing.assert_close(model(pictures()), network(pictures()), atol=1e-5, rtol=1e-5)
