"""MatGPTQ against the numbers of its reference implementation, and what is particular to it here."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.matgptq import columns_of, select, sliced, solve, symmetric_step
from ptmq.network.layers import QuantizedLayer
from ptmq.quantization.weight_quantizer import NestedWeightQuantizer

REFERENCE = json.loads((Path(__file__).parent.parent / "vectors" / "matgptq.json").read_text())
WEIGHT = torch.tensor(REFERENCE["grid"]["weight"])
STEP, ZERO = (torch.tensor(REFERENCE["grid"]["cases"][0][key]) for key in ("scale", "zero"))
INPUTS = torch.tensor(REFERENCE["linear"]["inputs"])


def layer_of(module: nn.Conv2d | nn.Linear) -> QuantizedLayer:
    return QuantizedLayer(module.requires_grad_(False), NestedWeightQuantizer(module.weight.shape, [3, 4, 8]))


@pytest.mark.parametrize("bits", [2, 3, 4, 6])
def test_slices_are_the_reference_s_and_what_the_model_reads(bits):
    expected = torch.tensor(REFERENCE["slice"][str(bits)])
    assert torch.equal(sliced([bits])[0] >> (8 - bits), expected)
    quantizer = NestedWeightQuantizer((256, 1), [bits, 8], ties="up")
    quantizer.set_code(torch.arange(256, dtype=torch.uint8)[:, None], torch.ones(256), ZERO[:1].expand(256))
    assert torch.equal(quantizer.codes(None, bits).flatten().long(), expected)


def test_the_grid_spans_the_absolute_weights_of_rows_with_a_negative_one():
    negative, step = WEIGHT.amin(1) < 0, symmetric_step(WEIGHT)
    torch.testing.assert_close(step[negative], STEP[negative])
    assert (127.5 * step >= WEIGHT.abs().amax(1) * (1 - 1e-6)).all()
    assert (WEIGHT.abs().amax(1) * 0.9 > 127.5 * STEP)[~negative].all(), "of these the reference clips a half"


ALIKE = [c for c in REFERENCE["selection"]["cases"] if c["symmetric"] and len(set(c["weights"].values())) == 1]


@pytest.mark.parametrize("case", ALIKE, ids=lambda case: str(case["widths"]))
def test_the_selected_code_and_what_it_leaves(case):
    widths = case["widths"]
    for column in range(WEIGHT.shape[1]):
        code, error = select(WEIGHT[:, column], STEP, sliced(widths))
        assert torch.equal(code, torch.tensor(case["code"])[:, column])
        expected = torch.tensor(case["summed_error"])[:, column] / len(widths)
        torch.testing.assert_close(error, expected, atol=1e-6, rtol=1e-4)


def run_of(name: str) -> dict:
    return next(run for run in REFERENCE["linear"]["runs"] if run["name"] == name)


def test_a_linear_layer_is_solved_as_the_reference_solves_it():
    run = run_of("one group a row, symmetric")
    moments = columns_of(layer_of(nn.Linear(8, 4)), INPUTS)[0]
    moments = moments @ moments.T
    factor = 2 / len(INPUTS)
    torch.testing.assert_close(moments * factor, torch.tensor(REFERENCE["linear"]["H"]), atol=1e-4, rtol=1e-4)
    codes = solve(WEIGHT, torch.tensor(run["scale"])[:, 0], moments, sliced([3, 4, 8]), 0.01)
    assert codes.tolist() == run["code"]


def test_an_input_that_is_always_0_has_weights_0():
    run = REFERENCE["dead_input"]
    inputs = INPUTS.clone()
    inputs[:, 5] = 0
    step = torch.tensor(run["scale"])[:, 0]
    codes = solve(WEIGHT, step, inputs.T @ inputs, sliced([3, 4, 8]), 0.01)
    assert codes[:, 5].tolist() == [128] * 4
    assert codes.tolist() == run["code"]


def test_a_convolution_is_solved_on_its_unfolded_patches():
    case = REFERENCE["convolution"]
    weight, x = torch.tensor(case["weight"]), torch.tensor(case["inputs"])
    conv = nn.Conv2d(weight.shape[1], len(weight), weight.shape[2], stride=case["stride"], padding=case["padding"])
    conv.weight.data = weight
    columns = columns_of(layer_of(conv), x)[0]
    moments = columns @ columns.T
    expected = torch.tensor(case["H_diagonal"])
    torch.testing.assert_close(moments.diagonal() * 2 / len(x), expected, atol=1e-4, rtol=1e-4)
    codes = solve(weight.flatten(1), torch.tensor(case["scale"])[:, 0], moments, sliced([3, 4, 8]), 0.01)
    assert codes.tolist() == case["code"]


def test_groups_have_moments_of_their_own():
    layer = layer_of(nn.Conv2d(4, 8, 3, groups=2, padding=1))
    x = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    columns = columns_of(layer, x)
    assert columns.shape == (2, 18, 75)
    out = torch.cat([rows @ group for rows, group in zip(layer.weight.flatten(1).chunk(2), columns, strict=True)])
    expected = nn.functional.conv2d(x, layer.weight, groups=2, padding=1)  # (3, 8, 5, 5)
    torch.testing.assert_close(out.unflatten(1, (3, -1)), expected.transpose(0, 1).flatten(2), atol=1e-5, rtol=1e-5)
