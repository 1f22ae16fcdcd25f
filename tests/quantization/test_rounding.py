"""Adaptive rounding against BRECQ's and QDrop's numbers, and its properties."""

import pytest
import torch

from ptmq.quantization.rounding import AdaptiveRounding, RoundingPerWidth, fractional_part, rectified_sigmoid
from tests.toys import vectors

V = vectors("adaptive_rounding")


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b), **({"atol": 1e-6, "rtol": 0} | tolerance))


def reference() -> AdaptiveRounding:
    weight = torch.tensor(V["weight"])
    step = torch.tensor(V["delta"]).view(-1, 1, 1, 1)
    zero = torch.tensor(V["zero_point"]).view(-1, 1, 1, 1)
    return AdaptiveRounding(weight, {3: step}, {3: zero}, "lowest")


def hard_weight(rounding: AdaptiveRounding) -> torch.Tensor:
    codes = torch.clamp(rounding.floors[3] + rounding.hard()[0], 0, 7)
    return (codes - rounding.zero_points[3]) * rounding.step_sizes[3]


def test_initial_v_and_forward_match():
    rounding = reference()
    close(fractional_part(torch.tensor(V["weight"]), rounding.step_sizes[3]), V["rest"])
    close(rounding.v.detach(), V["alpha_init"], atol=1e-5)
    close(rectified_sigmoid(rounding.v).detach(), V["soft_targets_init"])
    close(rounding.soft([3])[3].detach(), V["soft_forward_init"])
    close(hard_weight(rounding), V["hard_forward_init"])


def test_qdrop_soft_and_hard_match():
    vector = vectors("lsq")
    case, weight = vector["adaround_weight"], torch.tensor(vector["inputs"]["weight"])
    step = torch.tensor(case["scale"]).view(-1, 1, 1, 1)
    zero = torch.tensor(case["zero_point"], dtype=torch.float32).view(-1, 1, 1, 1)
    rounding = AdaptiveRounding(weight, {2: step}, {2: zero}, "lowest")
    close(rounding.v.detach(), case["alpha"], atol=1e-5)
    close(rectified_sigmoid(rounding.v).detach(), case["h"])
    close(rounding.soft([2])[2].detach(), case["soft"])
    codes = torch.clamp(rounding.floors[2] + rounding.hard()[0], 0, 3)
    close((codes - zero) * step, case["hard"])


@pytest.mark.parametrize("initial", ["lowest", "mean", "zero"])
def test_one_r_serves_all_widths(initial):
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    steps = {bits: torch.full((4, 1), 4 / 2**bits) for bits in (3, 4, 8)}
    rounding = AdaptiveRounding(weight, steps, {bits: torch.full((4, 1), 2.0 ** (bits - 1)) for bits in steps}, initial)
    assert rounding.hard().shape == (1, 4, 6) and set(rounding.hard().unique().tolist()) <= {0, 1}
    soft = rounding.soft(steps)
    if initial == "lowest":
        inside = (rounding.floors[3] >= 0) & (rounding.floors[3] < 7)
        torch.testing.assert_close(soft[3][inside], weight[inside], atol=1e-5, rtol=0)
    if initial == "zero":
        torch.testing.assert_close(rectified_sigmoid(rounding.v), torch.full((4, 6), 0.5))
    sum(w.sum() for w in soft.values()).backward()
    assert rounding.v.grad.abs().sum() > 0


def test_rounding_per_width_leaves_the_widths_alone_that_an_iteration_does_not_draw():
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    steps = {bits: torch.full((3, 1), 4 / 2**bits) for bits in (3, 4)}
    rounding = RoundingPerWidth(weight, steps, {3: torch.full((3, 1), 4.0), 4: torch.full((3, 1), 8.0)}, "lowest")
    (rounding.soft([3])[3].square().sum() + rounding.regularizer(4.0)).backward()
    assert rounding.each["3"].v.grad.abs().sum() > 0 and rounding.each["4"].v.grad is None
    assert torch.equal(rounding.hard()[1], rounding.each["4"].hard()[0])


def test_a_histogram_counts_every_value_once():
    rounding = reference()
    assert int(rounding.histogram().sum()) == rounding.v.numel()
    rounding.v.data.fill_(9.0)
    assert int(rounding.histogram()[-1]) == rounding.v.numel(), "h = 1"
