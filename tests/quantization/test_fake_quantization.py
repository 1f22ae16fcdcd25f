"""Fake quantization: QDrop's LSQ numbers, a plain autograd reference, and the drop mask."""

import math

import pytest
import torch
import torch.nn.functional as F

from ptmq.quantization import tiles
from ptmq.quantization.fake_quantization import (
    KeepMask,
    dequantize,
    draw_mask,
    fake_quantize_activation,
    keep_mask,
    largest_code,
    quantize,
)
from tests.toys import vectors

V = vectors("lsq")


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b), **({"atol": 1e-6, "rtol": 1e-5} | tolerance))


def plain(x, step, zero_point, bits, keep, grad_scale, compiled):
    """The same function as a chain of ordinary operations with straight-through rounding."""
    scaled_step = (step - step * grad_scale).detach() + step * grad_scale
    ratio = x / scaled_step
    codes = torch.clamp((ratio.round() - ratio).detach() + ratio + zero_point, 0, largest_code(bits))
    out = (codes - zero_point) * scaled_step
    return out if keep is None else torch.where(keep.like(x) > 0, out, x)


@pytest.mark.parametrize(
    "case", V["fake_quant"], ids=lambda c: f"{c['cls']}-{c['x']}-{c['bit']}-{c['scale']:.2f}-{c['use_grad_scaling']}"
)
def test_lsq_matches_qdrop(case):
    """Also LSQ+, but for its gradient of the zero point: zero points are not learned here, they are rounded."""
    x = torch.tensor(V["inputs"][case["x"]], requires_grad=True)
    step = torch.tensor([case["scale"]], requires_grad=True)
    out = fake_quantize_activation(x, step, round(case["zero_point"]), case["bit"], grad_scale=case["grad_factor"])
    out.backward(torch.tensor(case["upstream_grad"]))
    close(out.detach(), case["y"])
    close(x.grad, case["grad_x"])
    close(step.grad, case["grad_scale"], rtol=1e-4)
    if case["use_grad_scaling"]:
        default = (x.numel() * largest_code(case["bit"])) ** -0.5
        assert default == pytest.approx(case["grad_factor"])


def test_drop_matches_qdrop():
    case = V["drop"]
    x = torch.tensor(V["inputs"]["act_relu"], requires_grad=True)
    step = torch.tensor([case["scale"]], requires_grad=True)
    keep = KeepMask((torch.tensor(case["u"]) >= 0.5).flatten().to(torch.uint8), 1)
    out = fake_quantize_activation(x, step, 0, case["bit"], keep)
    out.backward(torch.tensor(case["upstream_grad"]))
    close(out.detach(), case["y"])
    close(x.grad, case["grad_x"])
    close(step.grad, case["grad_scale"], rtol=1e-4)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_analytic_backward_equals_autograd(bits, dropped, channels_last, monkeypatch):
    monkeypatch.setattr(tiles, "PART", 64)  # of 240 elements
    check_backward(bits, dropped, channels_last, compiled=False)


def check_backward(bits: int, dropped: bool, channels_last: bool, compiled: bool) -> None:
    """Values and gradients are those of a chain of ordinary operations."""
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(5, 3, 4, 4, generator=generator)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    grad = torch.randn(5, 3, 4, 4, generator=generator)
    keep = draw_mask(x.numel(), 0.5, generator) if dropped else None
    results = []
    for function in (fake_quantize_activation, plain):
        a, step = x.clone().requires_grad_(), torch.tensor([3.0 / 2**bits], requires_grad=True)
        out = function(a, step, 2 ** (bits - 1), bits, keep, 0.1, compiled)
        out.backward(grad)
        results.append((out.detach(), a.grad, step.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name, bounds", [("relu", (0.0, math.inf)), ("relu6", (0.0, 6.0))])
@pytest.mark.parametrize("dropped", [False, True])
def test_bounds_are_the_activation_function_before(name, bounds, dropped, monkeypatch):
    monkeypatch.setattr(tiles, "PART", 64)
    check_bounds(name, bounds, dropped, compiled=False)


def check_bounds(name: str, bounds: tuple[float, float], dropped: bool, compiled: bool) -> None:
    """To the last bit unless it is compiled, gradients included; the range of the codes ends below 6."""
    generator = torch.Generator().manual_seed(0)
    x, grad = 4 * torch.randn(5, 3, 4, 4, generator=generator), torch.randn(5, 3, 4, 4, generator=generator)
    keep = draw_mask(x.numel(), 0.5, generator) if dropped else None
    results = []
    for given in (bounds, None):
        leaf, step = x.clone().requires_grad_(), torch.tensor([0.35], requires_grad=True)
        before = leaf if given else getattr(F, name)(leaf)
        out = fake_quantize_activation(before, step, 0, 4, keep, compiled=compiled and given is not None, bounds=given)
        out.backward(grad)
        results.append((out.detach(), leaf.grad, step.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6 * compiled, rtol=1e-4 * compiled)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_passes_where_the_code_does_not_saturate(bits):
    """For values all over the grid, the ends of its cells among them, and not beyond half a step outside it."""
    step, cells = torch.tensor([0.1]), torch.arange(-2.0, 2**bits + 2, 1 / 16)
    x = (cells * step).requires_grad_()
    fake_quantize_activation(x, step, 0, bits).sum().backward()
    inside, outside = (
        (cells > -0.5) & (cells < largest_code(bits) + 0.5),
        (cells < -0.51) | (cells > largest_code(bits) + 0.51),
    )
    assert x.grad[inside].eq(1).all() and x.grad[outside].eq(0).all()


def test_the_gradient_passes_where_zero_lies_far_off_the_grid():
    """A zero point of -1275 codes: float32 rounds values of this size by more than it does on a grid that holds 0."""
    step = torch.tensor([1 / 255])
    x = torch.linspace(5.001, 5.999, 10_001).requires_grad_()
    fake_quantize_activation(x, step, -1275, 8).sum().backward()
    assert x.grad.eq(1).all()


def test_quantize_stays_on_the_grid():
    x = torch.linspace(-3, 3, 101)
    codes = quantize(x, torch.tensor(0.25), torch.tensor(5.0), 4)
    assert set(codes.tolist()) <= set(map(float, range(16)))
    again = quantize(dequantize(codes, torch.tensor(0.25), torch.tensor(5.0)), torch.tensor(0.25), torch.tensor(5.0), 4)
    assert torch.equal(again, codes)


def test_keep_mask_is_a_fair_explicit_coin():
    like = torch.empty(3, 5, 40, 41).contiguous(memory_format=torch.channels_last)
    state = torch.random.get_rng_state()
    one, two = (keep_mask(like, 0.25, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, two) and one.stride() == like.stride()
    assert set(one.unique().tolist()) == {0.0, 1.0}
    assert abs(float(one.mean()) - 0.25) < 4 * (0.25 * 0.75 / one.numel()) ** 0.5
    assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"
    assert keep_mask(like, 1.0, torch.Generator()).min() == 1 and keep_mask(like, 0.0, torch.Generator()).max() == 0


def test_a_mask_of_a_part_of_a_tensor_has_its_shape():
    """The values of an attention head lie in the output of the layer that gives queries, keys and values."""
    whole = torch.zeros(2, 5, 3, 4)
    part = whole[:, :, 1].transpose(1, 2)
    mask = keep_mask(part, 0.5, torch.Generator().manual_seed(0))
    assert mask.shape == part.shape and set(mask.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("view", ["dense", "part of a tensor", "expanded gradient"])
def test_tensors_of_every_layout(view, monkeypatch):
    monkeypatch.setattr(tiles, "PART", 16)
    whole = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    results = []
    for function in (fake_quantize_activation, plain):
        leaf, step = whole.clone().requires_grad_(), torch.tensor([0.3], requires_grad=True)
        x = leaf[:, :, 1].transpose(1, 2) if view == "part of a tensor" else leaf
        out = function(x, step, 4, 3, None, 0.1, False)
        (out.sum() if view == "expanded gradient" else out.square().sum()).backward()
        results.append((out.detach(), leaf.grad, step.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference, atol=1e-6, rtol=1e-4)


def test_no_image_at_all_is_quantized_to_nothing():
    out = fake_quantize_activation(torch.zeros(0, 3, 4, 4), torch.ones(1), 0, 4)
    assert out.shape == (0, 3, 4, 4)


def test_the_gradient_of_the_step_size_does_not_cancel():
    x = torch.rand(2**21, generator=torch.Generator().manual_seed(0))
    step = torch.tensor([1 / 255], requires_grad=True)
    fake_quantize_activation(x, step, 0, 8, grad_scale=1.0).sum().backward()
    scaled = x.double() / step.double()
    exact = (torch.round(scaled) - scaled).sum()  # codes are all inside the range
    torch.testing.assert_close(step.grad.double(), exact.view(1).detach(), rtol=0, atol=4.0)
