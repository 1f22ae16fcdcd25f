"""The quantizer of an activation: its ReLU, its widths, what it learns and keeps."""

import pytest
import torch
import torch.nn.functional as F

from ptmq.common.bits import FP
from ptmq.quantization.activation_quantizer import ActivationQuantizer, Drop


def values(seed: int = 0) -> torch.Tensor:
    return 4 * torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def searched(x: torch.Tensor, widths=(3, 4), **options) -> ActivationQuantizer:
    quantizer = ActivationQuantizer(widths, **options)
    quantizer.search_step_sizes(x, "minmax")
    return quantizer


@pytest.mark.parametrize("relu", [F.relu, F.relu6])
@pytest.mark.parametrize("bits", [4, FP])
def test_with_a_relu_it_is_the_relu_and_a_quantizer(relu, bits):
    x, grad = values(0), values(1)
    results = []
    for given in (relu, None):
        quantizer = searched(x)
        quantizer.relu, quantizer.drop = given, Drop(0.5, torch.Generator().manual_seed(2))
        quantizer.set_bits(bits)
        leaf = x.clone().requires_grad_()
        out = quantizer(leaf if given else relu(leaf))
        out.backward(grad)
        results.append((out.detach(), leaf.grad, quantizer.step["4"].grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2], "None in floating point"


def test_a_drop_leaves_elements_as_they_are_and_ends():
    x = values()
    quantizer = searched(x)
    quantizer.set_bits(3)
    quantized = quantizer(x)
    quantizer.drop = Drop(0.5, torch.Generator().manual_seed(0))
    one, two = quantizer(x), quantizer(x)
    assert not torch.equal(one, two), "drawn anew at every call"
    assert torch.equal(one, torch.where(one == x, x, quantized))
    quantizer.drop = None
    assert torch.equal(quantizer(x), quantized)


def test_only_the_selected_width_learns():
    x = values()
    quantizer = searched(x)
    quantizer.set_bits(3)
    quantizer(x).square().sum().backward()
    assert quantizer.step["3"].grad.abs() > 0 and quantizer.step["4"].grad is None


def test_a_fixed_width_stays_but_for_floating_point():
    quantizer = searched(values(), fixed=8)
    for selected, taken in ((3, 8), (FP, FP), (4, 8)):
        quantizer.set_bits(selected)
        assert quantizer.bits == taken
    with pytest.raises(ValueError, match="activation quantizer has no 5-bit step size. Calibrated widths: 3, 4."):
        searched(values()).set_bits(5)


def test_a_step_size_that_crossed_zero_comes_back():
    quantizer = searched(values())
    quantizer.step["3"].data.fill_(-0.5)
    before = quantizer.step["4"].item()
    quantizer.keep_step_sizes_positive()
    assert quantizer.step["3"].item() > 0 and quantizer.step["4"].item() == before


def test_a_loaded_zero_point_is_used_though_another_one_was():
    x = values()
    used, other = searched(x), searched(x + 3)
    for quantizer in (used, other):
        quantizer.set_bits(4)
    used(x)
    used.load_state_dict(other.state_dict())
    assert torch.equal(used(x), other(x))
