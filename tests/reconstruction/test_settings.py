"""The schedule of adaptive rounding, against BRECQ's numbers of five iterations of Adam."""

import pytest
import torch
import torch.nn.functional as F

from ptmq.quantization.rounding import AdaptiveRounding, rounding_regularizer
from ptmq.reconstruction.losses import distance
from ptmq.reconstruction.settings import AdaptiveRoundingSettings
from tests.toys import vectors

V = vectors("adaptive_rounding")


def close(a, b, **tolerance):
    torch.testing.assert_close(a, torch.as_tensor(b), **({"atol": 1e-6, "rtol": 0} | tolerance))


@pytest.mark.parametrize("count, beta", [(k, v) for k, v in V["temp_b"]["values"].items() if int(k) >= 4000])
def test_beta_schedule_matches(count, beta):
    settings = AdaptiveRoundingSettings(iterations=V["temp_b"]["t_max"], warmup=V["temp_b"]["warmup"])
    assert settings.beta_at(int(count)) == pytest.approx(beta)


def test_the_regularizer_waits_for_the_warm_up():
    settings = AdaptiveRoundingSettings(iterations=100, warmup=0.2)
    assert settings.beta_at(19) is None and settings.beta_at(20) == 20


@pytest.mark.parametrize("count, value", V["round_loss_weight0.01"].items())
def test_regularizer_matches(count, value):
    settings = AdaptiveRoundingSettings(iterations=20000, regularizer=0.01)
    h = torch.tensor(V["soft_targets_init"])
    assert 0.01 * float(rounding_regularizer(h, settings.beta_at(int(count)))) == pytest.approx(value, abs=1e-6)


def test_five_iterations_of_adam_match():
    case = V["recon"]
    step, zero = (torch.tensor(V[name]).view(-1, 1, 1, 1) for name in ("delta", "zero_point"))
    rounding = AdaptiveRounding(torch.tensor(V["weight"]), {3: step}, {3: zero}, "lowest")
    optimizer = torch.optim.Adam(rounding.parameters(), lr=1e-3)
    settings = AdaptiveRoundingSettings(iterations=case["iters"], warmup=case["warmup"], regularizer=case["weight"])
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
    codes = torch.clamp(rounding.floors[3] + rounding.hard()[0], 0, 7)
    close((codes - zero) * step, case["final_hard_weight"])
