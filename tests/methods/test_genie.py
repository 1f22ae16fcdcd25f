"""Genie-M's quantizer against the numbers of its reference implementation, and what is particular to it."""

import json
from pathlib import Path

import pytest
import torch

from baselines.genie import JointRounding
from ptmq.quantization.weight_quantizer import RoundedWeightQuantizer

CASES = json.loads((Path(__file__).parent.parent / "vectors" / "genie.json").read_text())
WEIGHT = torch.tensor(CASES["init_scale"]["W"])
REFERENCE = CASES["weight_quantizer"]


def column(values) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


@pytest.fixture(params=REFERENCE["cases"], ids=lambda case: f"{case['bits']} bits")
def case(request) -> dict:
    return request.param


@pytest.fixture
def rounding(case) -> JointRounding:
    bits = case["bits"]
    return JointRounding(
        WEIGHT, {bits: column(case["scale_init"])}, {bits: column(case["zero_point"]).float()}, "lowest"
    )


def test_it_starts_at_the_weight(case, rounding):
    torch.testing.assert_close(rounding.v.detach(), torch.tensor(case["bit_logit_init"]), atol=1e-4, rtol=1e-4)
    soft = rounding.soft([case["bits"]])[case["bits"]].detach()
    torch.testing.assert_close(soft, torch.tensor(case["soft_init"]), atol=1e-6, rtol=1e-5)


def test_moved_step_sizes_and_roundings_give_its_values_and_gradients(case, rounding):
    bits = case["bits"]
    log_step = rounding.log_step[str(bits)]
    with torch.no_grad():
        log_step.add_(column(case["scale_factor"]).log())
        rounding.v.copy_(torch.tensor(case["bit_logit_init"]) + torch.tensor(case["bit_logit_shift"]))
    soft = rounding.soft([bits])[bits]
    torch.testing.assert_close(soft.detach(), torch.tensor(case["soft_moved"]), atol=1e-6, rtol=1e-5)
    (soft * torch.tensor(REFERENCE["upstream"])).sum().backward()
    by_step = log_step.grad / log_step.detach().exp()  # d / d s from d / d log s
    torch.testing.assert_close(by_step.flatten(), torch.tensor(case["grad_scale"]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(rounding.v.grad, torch.tensor(case["grad_bit_logit"]), atol=1e-6, rtol=1e-4)


def test_what_is_stored_gives_its_hard_weights(case, rounding):
    bits = case["bits"]
    with torch.no_grad():
        rounding.log_step[str(bits)].add_(column(case["scale_factor"]).log())
        rounding.v.copy_(torch.tensor(case["bit_logit_init"]) + torch.tensor(case["bit_logit_shift"]))
    quantizer = RoundedWeightQuantizer(WEIGHT.shape, [bits])
    quantizer.zero_point[0] = torch.tensor(case["zero_point"])
    quantizer.relaxation = rounding
    quantizer.harden()
    hard = quantizer.quantized(WEIGHT, bits)
    torch.testing.assert_close(hard, torch.tensor(case["hard_moved"]), atol=1e-6, rtol=1e-5)
