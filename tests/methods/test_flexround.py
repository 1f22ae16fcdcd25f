"""FlexRound against its reference's numbers, and what it stores."""

import pytest
import torch

from baselines.flexround import ElementwiseDivision
from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from tests.toys import W3, same_state, searched_model, vectors

V = vectors("flexround")


def close(a, b, atol=1e-6):
    b = torch.as_tensor(b)
    torch.testing.assert_close(a.detach().reshape(b.shape), b, atol=atol, rtol=1e-5)


def division(case: dict, weight: torch.Tensor) -> tuple[ElementwiseDivision, int]:
    bits = case.get("n_bits", 4)
    column = (-1, *[1] * (weight.dim() - 1))
    step, zero = torch.tensor(case["s1"]).view(column), torch.tensor(case["zero_point"]).view(column)
    if case.get("symmetric"):  # codes -2^(b-1) .. 2^(b-1) - 1 are ours with the zero point in the middle
        zero = zero + 2 ** (bits - 1)
    return ElementwiseDivision(weight, {bits: step}, {bits: zero}), bits


@pytest.mark.parametrize(
    "case", V["cases"], ids=lambda c: f"{c['n_bits']}-{c['channel_wise']}-{c['symmetric']}-{c['clipping']}"
)
def test_it_matches_on_linear_layers(case):
    rounding, bits = division(case, torch.tensor(V["weight"]))
    # Where a weight lies halfway between two codes, the last bit of exp(log(step)), which differs from CPU to CPU, decides.
    places = torch.tensor(V["weight"]) / rounding.step_sizes[bits]
    halfway = (places - places.floor() - 0.5).abs() < 1e-5
    close(rounding.soft([bits])[bits].where(~halfway, 0), torch.tensor(case["y_init"]).where(~halfway, 0))
    assert halfway.sum() < halfway.numel() / 4
    rounding.log_s2.data.copy_(torch.tensor(V["log_S2"]))
    rounding.log_s3.data.copy_(torch.tensor(V["log_s3"]))
    soft = rounding.soft([bits])[bits]
    close(soft, case["y_perturbed"])
    soft.backward(torch.tensor(V["upstream"]))
    close(rounding.log_s2.grad, case["grad_log_S2"])
    close(rounding.log_s3.grad, case["grad_log_s3"], atol=2e-6)
    close(rounding.log_s1[str(bits)].grad, case["grad_log_s1"], atol=2e-6)


def test_it_matches_on_convolutions():
    case = V["conv_extension"]
    rounding, bits = division(case, torch.tensor(case["weight"]))
    rounding.log_s2.data.copy_(torch.tensor(case["log_S2"]))
    rounding.log_s3.data.copy_(torch.tensor(case["log_s3"]).view(-1, 1, 1, 1))
    rounding.log_s4.data.copy_(torch.tensor(case["log_s4"]).view(1, -1, 1, 1))
    soft = rounding.soft([bits])[bits]
    close(soft, case["y"])
    soft.backward(torch.tensor(case["upstream"]))
    for name, grad in (("S2", rounding.log_s2), ("s3", rounding.log_s3), ("s4", rounding.log_s4)):
        close(grad.grad, case[f"grad_log_{name}"], atol=2e-6)
    close(rounding.log_s1[str(bits)].grad, case["grad_log_s1"], atol=2e-6)


def test_it_starts_from_round_to_nearest_and_stores_what_it_learned(images):
    """The stored step size and rounding give the learned weight again, however far a weight has moved."""
    model = searched_model(images, [W3])
    layer = model.units[1].layers[0]
    (hooks,) = create("flexround", {}, [W3]).passes()
    rounding = layer.quantizer.relaxation = hooks.relax(layer)
    torch.testing.assert_close(rounding.soft([3])[3].detach(), layer.weight_at(3), atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in rounding.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.7)
    learned = rounding.soft([3])[3].detach()
    layer.quantizer.harden()
    torch.testing.assert_close(layer.weight_at(3), learned, atol=1e-5, rtol=1e-5)
    stored = layer.quantizer.rounding
    assert stored.max() > 1 or stored.min() < 0, "moved no further than adaptive rounding could"
    fresh = searched_model(images, [W3])
    fresh.load_state_dict(model.state_dict())
    assert same_state(fresh, model) and torch.equal(fresh.units[1].layers[0].weight_at(3), layer.weight_at(3))


def test_it_drops_nothing_in_the_setting_of_brecq():
    with pytest.raises(InputError, match="flexround: keep must be 1 in setting brecq .set keep: 1.. Got 0.5."):
        create("flexround", {"setting": "brecq"}, [W3])
    method = create("flexround", {"setting": "brecq", "keep": 1.0, "activation_iterations": 7}, [W3])
    first, second = method.passes()
    assert (first.widths, second.widths) == ((BitWidth(3, 32),), (W3,)) and second.settings.iterations == 7


@pytest.mark.parametrize("settings, message", [
    ({"setting": "adaround"}, "flexround: setting 'adaround' is unknown. Known: brecq, qdrop"),
    ({"regularizer": 0.1}, "flexround: setting 'regularizer' is unknown"),
])  # fmt: skip
def test_what_it_does_not_do_is_said(settings, message):
    with pytest.raises(InputError, match=message):
        create("flexround", settings, [W3])
