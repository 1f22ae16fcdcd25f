"""Adaptive rounding against BRECQ's and QDrop's numbers, and its properties."""

import pytest
import torch
import torch.nn.functional as F
from conftest import vectors

from ptmq.common.settings import AdaptiveRoundingSettings
from ptmq.quantization.rounding import AdaptiveRounding, fractional_part, rectified_sigmoid, rounding_regularizer
from ptmq.reconstruction.losses import distance

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
    return (codes - rounding.zero_points[3]) * rounding.steps[3]


def test_initial_v_and_forward_match():
    rounding = reference()
    close(fractional_part(torch.tensor(V["weight"]), rounding.steps[3]), V["rest"])
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


@pytest.mark.parametrize("count, beta", [(k, v) for k, v in V["temp_b"]["values"].items() if int(k) >= 4000])
def test_beta_schedule_matches(count, beta):
    settings = AdaptiveRoundingSettings(steps=V["temp_b"]["t_max"], warmup=V["temp_b"]["warmup"])
    assert settings.beta_at(int(count)) == pytest.approx(beta)


def test_the_regularizer_waits_for_the_warm_up():
    settings = AdaptiveRoundingSettings(steps=100, warmup=0.2)
    assert settings.beta_at(19) is None and settings.beta_at(20) == 20


@pytest.mark.parametrize("count, value", V["round_loss_weight0.01"].items())
def test_regularizer_matches(count, value):
    settings = AdaptiveRoundingSettings(steps=20000, regularizer=0.01)
    h = torch.tensor(V["soft_targets_init"])
    assert 0.01 * float(rounding_regularizer(h, settings.beta_at(int(count)))) == pytest.approx(value, abs=1e-6)


def test_five_adam_steps_match():
    case, rounding = V["recon"], reference()
    optimizer = torch.optim.Adam(rounding.parameters(), lr=1e-3)
    settings = AdaptiveRoundingSettings(steps=case["iters"], warmup=case["warmup"], regularizer=case["weight"])
    x, bias, target = (torch.tensor(case[key]) for key in ("x_quant_input", "bias", "target_fp"))
    for expected in case["trace"]:
        out = F.relu(F.conv2d(x, rounding.soft([3])[3], bias))
        error = distance(out, target)
        beta = settings.beta_at(expected["count"])
        total = error + settings.regularizer * rounding.regularizer(beta)
        optimizer.zero_grad()
        total.backward()
        assert float(error.detach()) == pytest.approx(expected["rec"], abs=1e-6)
        assert float(total.detach()) == pytest.approx(expected["total"], abs=1e-6)
        close(rounding.v.grad, expected["grad_alpha"], rtol=1e-4)
        optimizer.step()
        close(rounding.v.detach(), expected["alpha_after"], atol=2e-5)
    close(hard_weight(rounding), case["final_hard_weight"])


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
