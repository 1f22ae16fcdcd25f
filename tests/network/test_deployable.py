"""The deployable form: quantizers, biases and codes as integer kernels need them; without a target, nothing changes."""

import pytest
import torch
from torch import nn

from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.quantization.step_size import FINEST
from ptmq.quantization.weight_quantizer import NestedWeightQuantizer
from tests.toys import GROUPS, W3, W4, W8, random_network, toy_images, toy_network


def deployable(network: nn.Module, example=None, anchor: int = 0, widths=GROUPS.widths) -> MultiBitModel:
    spec = QuantizationSpec(None, widths, anchor=anchor, target="onnx", correction="gain")
    return MultiBitModel(network, spec, example).eval()


@pytest.fixture(scope="module", params=[0, 4], ids=["a grid each", "nested"])
def model(request):
    model = deployable(toy_network(), anchor=request.param)
    model.search_step_sizes(toy_images(), "shrink")
    return model


class Shuffled(nn.Module):
    """Half of the channels pass a branch and are concatenated, shuffled and pooled: (n, 2, 6, 6) -> (n, 3)."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(2, 8, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        left, right = x.chunk(2, 1)
        x = torch.cat((left, torch.relu(self.b(self.a(right)))), 1)
        x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return self.fc(x.mean((2, 3)))


def places(model: MultiBitModel) -> dict[str, int | None]:
    """The quantizers and the widths that they keep."""
    found = [pair for unit in model.units for pair in unit.graph.named_modules()]
    return {
        name.removesuffix("_quantizer"): module.fixed
        for name, module in found
        if isinstance(module, ActivationQuantizer)
    }


def test_images_summands_and_what_pooling_gives_are_quantized_to_8_bits():
    assert places(deployable(toy_network())) == {
        "images": 8, "relu": None,
        "relu_1": None, "blocks_0_conv2": 8, "relu_2": None,
        "relu_3": None, "blocks_1_conv2": 8, "relu_4": 8, "mean": 8,
    }  # fmt: skip


def test_what_is_concatenated_is_quantized_and_so_is_the_whole():
    found = places(deployable(random_network(Shuffled), torch.randn(2, 2, 6, 6)))
    assert found == {"images": 8, "relu": None, "a": None, "relu_1": 8, "cat": 8, "mean": 8}


def test_every_convolution_has_its_bias_on_the_grid_of_its_kernel(model):
    layers = [layer for layer in model.layers if layer.kind == "Conv2d"]
    assert len(layers) == 5 and all(layer.bias_grid for layer in layers)
    for layer in layers:
        layer.set_width(W4)
        bias, step = layer.bias_grid(layer, layer.bias), layer.bias_grid.step_size(layer)
        codes = (bias.double() / step.double()).detach()
        assert (codes - codes.round()).abs().max() < 1e-2 and codes.abs().max() < 2**31
        assert ((bias - layer.bias).abs() <= step * 0.51).all()


def test_the_gradient_of_a_bias_passes_its_grid(model):
    layer = next(model.layers)
    layer.set_width(W4)
    bias = layer.bias.clone().requires_grad_(True)
    layer.bias_grid(layer, bias).sum().backward()
    assert torch.equal(bias.grad, torch.ones_like(bias))


def test_in_floating_point_nothing_is_rounded(model):
    model.set_bits(32, 32)
    x = torch.randn(4, 2, 6, 6)
    assert torch.allclose(model(x), toy_network()(x), atol=1e-5)


@pytest.mark.parametrize("width", [W3, W4, W8], ids=str)
def test_codes_minus_zero_points_fit_a_signed_byte_and_zero_points_their_grid(model, width):
    for layer in model.layers:
        bits = layer.quantizer.fixed or width.weight
        codes, zero = layer.quantizer.codes(layer.weight, bits), layer.quantizer.grid(bits)[1]
        values = codes.float() - zero
        assert values.min() >= -128 and values.max() <= 127
        assert zero.min() >= 0 and zero.max() <= 2**bits - 1
    for quantizer in model.quantizers:
        zeros = dict(zip(quantizer.widths, quantizer.zero_point.tolist(), strict=True))
        assert all(0 <= zero <= 2**bits - 1 for bits, zero in zeros.items())


def test_a_nested_channel_that_leaves_a_byte_has_7_bits_at_width_8():
    weight = torch.cat([torch.rand(1, 64), torch.rand(1, 64) - 0.5])  # one-sided, and around 0
    plain, kept = (NestedWeightQuantizer(weight.shape, [3, 8], in_a_byte=flag) for flag in (False, True))
    for quantizer in (plain, kept):
        quantizer.search_step_sizes(weight, "minmax")
    assert plain.grid(8)[0][0] * 2 == kept.grid(8)[0][0] and kept.codes(weight, 8)[0].max() <= 127
    assert plain.grid(8)[0][1] == kept.grid(8)[0][1] and torch.equal(
        plain.codes(weight, 8)[1], kept.codes(weight, 8)[1]
    )
    assert torch.equal(plain.codes(weight, 3), kept.codes(weight, 3))  # below 8 bits nothing changes
    assert (kept.quantized(weight, 8) - weight).abs().max() < kept.grid(8)[0].max()


@pytest.mark.parametrize("anchor", [0, 4])
def test_a_dead_channel_has_no_step_size_that_overflows_a_bias(anchor):
    network = toy_network()
    network.stem.weight.data[0] = 0
    model = deployable(network, anchor=anchor)
    model.search_step_sizes(torch.randn(16, 2, 6, 6), "shrink")
    step = next(model.layers).quantizer.grid(8)[0]
    assert step.min() >= step.max() * FINEST * 0.99


def test_an_unknown_target_is_refused():
    with pytest.raises(InputError, match="target 'onx' is unknown. Did you mean 'onnx'"):
        QuantizationSpec(None, [W4], target="onx")
