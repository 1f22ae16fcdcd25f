"""The correction of a layer's output: folded into weight and bias, one a width."""

import pytest
import torch
from torch import nn

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.network.layers import QuantizedLayer
from ptmq.quantization.quantizer import BOUND, ChannelCorrection
from ptmq.quantization.weight_quantizer import NestedWeightQuantizer

W3, W4 = BitWidth(3, 3), BitWidth(4, 4)
LAYERS = {
    "convolution": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), (2, 4)),
    "tokens": (lambda: nn.Linear(4, 6, bias=False), (2, 7, 4)),
}


def layer_of(kind: str) -> tuple[QuantizedLayer, torch.Tensor]:
    """A layer with a correction at W3A3, and an input."""
    make, shape = LAYERS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain, x = make().requires_grad_(False), torch.randn(shape)
    correction = ChannelCorrection(len(plain.weight), [W3, W4])
    layer = QuantizedLayer(plain, NestedWeightQuantizer(plain.weight.shape, [3, 4]), correction)
    layer.search_step_sizes("shrink")
    channels = torch.linspace(-0.3, 0.3, len(plain.weight))
    correction.set(W3, channels, 2 * channels)
    return layer, x


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_gain_and_shift_act_on_output_channels(kind):
    layer, x = layer_of(kind)
    correction = layer.correction
    layer.correction = None
    layer.set_width(W3)
    axis = -1 if layer.kind == "Linear" else 1
    plain = layer(x).movedim(axis, -1)
    layer.correction = correction
    layer.set_width(W3)
    gain, shift = correction.gain["W3A3"], correction.shift["W3A3"]
    bias = 0 if layer.bias is None else layer.bias
    expected = (1 + gain) * (plain - bias) + bias + shift
    torch.testing.assert_close(layer(x).movedim(axis, -1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_what_is_folded_once_is_taken_again_until_it_changes(kind):
    layer, x = layer_of(kind)
    layer.set_width(W3)
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    one, two = (layer.correction(layer.weight_at(3), layer.bias)[0] for _ in range(2))
    assert one is two
    layer.correction.clear(W3)
    assert not torch.equal(layer(x), first)


def test_it_is_selected_by_weight_bits_and_the_nearest_activation_bits():
    correction = ChannelCorrection(2, [BitWidth(4, 4), BitWidth(4, 8), BitWidth(6, 6)])
    for width, selected in {"W4A8": "W4A8", "W4A7": "W4A8", "W4A32": "W4A8", "W4A3": "W4A4", "W6A3": "W6A6"}.items():
        correction.select(BitWidth.parse(width))
        assert correction.selected == selected
    for width in (FULL_PRECISION, BitWidth(32, 4), BitWidth(5, 5)):
        correction.select(width)
        assert correction.selected is None


def test_in_floating_point_nothing_is_corrected():
    layer, x = layer_of("convolution")
    layer.set_width(FULL_PRECISION)
    expected = nn.functional.conv2d(x, layer.weight, layer.bias)
    assert torch.equal(layer(x), expected)


def test_gradients_reach_it_only_while_it_learns():
    layer, x = layer_of("linear")
    layer.set_width(W3)
    assert not layer(x).requires_grad
    layer.correction.learn(True)
    layer(x).square().sum().backward()
    assert layer.correction.gain["W3A3"].grad.abs().sum() > 0 and layer.correction.shift["W3A3"].grad.abs().sum() > 0
    assert layer.correction.gain["W4A4"].grad is None, "a width that did not run"
    layer.correction.learn(False)
    assert not layer(x).requires_grad


def test_gains_are_kept_within_their_bounds():
    correction = ChannelCorrection(3, [W3])
    correction.set(W3, torch.tensor([-5.0, 0.1, 5.0]), torch.zeros(3))
    correction.keep_bounded()
    torch.testing.assert_close(1 + correction.gain["W3A3"], torch.tensor([1 / BOUND, 1.1, BOUND]))
