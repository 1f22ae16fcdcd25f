"""QuEPT's weights and token merging against the numbers of its reference implementation, and its stream."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from baselines.quept import LowRankTerm, merge_tokens
from ptmq.common.bits import BitGroups
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from ptmq.models.zoo import BACKBONES
from ptmq.quantization.weight_quantizer import RoundedWeightQuantizer
from ptmq.reconstruction.features import propagate

REFERENCE = json.loads((Path(__file__).parent.parent / "vectors" / "quept.json").read_text())
LAYER = REFERENCE["layer"]
WIDTHS = [4, 5, 6, 7, 8]
RANKS = {4: 48, 5: 32, 6: 32, 7: 16, 8: 16}
GROUPS = BitGroups(("W3A3", "W4A4"), ("W5A5", "W6A6"), ("W7A7", "W8A8"))


@pytest.fixture
def term() -> LowRankTerm:
    weight = torch.tensor(LAYER["weight"])
    start = {bits: torch.ones(len(weight), 1) for bits in WIDTHS}
    found = LowRankTerm(weight, start, RANKS, torch.Generator().manual_seed(0))
    with torch.no_grad():
        found.b.copy_(torch.tensor(LAYER["Bd"]))
        found.a.copy_(torch.tensor(LAYER["Bu"]))
        for number, bits in enumerate(WIDTHS):
            found.upper[str(bits)][:, 0] = torch.tensor(LAYER["up"][number])
            found.lower[str(bits)][:, 0] = torch.tensor(LAYER["low"][number])
    return found


def quantized_input(bits: int) -> torch.Tensor:
    """The reference quantizes the layer's input, per tensor, with an unscaled step size."""
    number = WIDTHS.index(bits)
    step, zero = LAYER["delta"][number], LAYER["zero_point"][number]
    codes = torch.clamp(torch.round(torch.tensor(LAYER["x"]) / step) + zero, 0, 2**bits - 1)
    return (codes - zero) * step


@pytest.mark.parametrize("case", LAYER["cases"], ids=lambda case: f"{case['bits']} bits")
class TestLayer:
    def test_weight_and_gradients(self, case, term):
        bits = case["bits"]
        weight = term.soft([bits])[bits]
        torch.testing.assert_close(weight.detach(), torch.tensor(case["weight"]), atol=1e-6, rtol=1e-5)
        y = nn.functional.linear(quantized_input(bits), weight, torch.tensor(LAYER["bias"]))
        torch.testing.assert_close(y.detach(), torch.tensor(case["y"]), atol=1e-5, rtol=1e-5)
        (y * torch.tensor(LAYER["upstream"])).sum().backward()
        rank = case["rank"]
        grads = {
            "grad_up": term.upper[str(bits)].grad[:, 0],
            "grad_low": term.lower[str(bits)].grad[:, 0],
            "grad_Bd": term.b.grad[:, :rank],
            "grad_Bu": term.a.grad[:rank],
        }
        for name in grads.keys() & case.keys():
            expected = torch.tensor(case[name])
            expected = expected[:, :rank] if name == "grad_Bd" else expected[: len(grads[name])]
            torch.testing.assert_close(grads[name], expected, atol=1e-5, rtol=1e-3)
        assert not term.b.grad[:, rank:].any() and not term.a.grad[rank:].any()

    def test_what_is_stored_gives_the_same_weight(self, case, term):
        bits = case["bits"]
        quantizer = RoundedWeightQuantizer(term.weight.shape, WIDTHS)
        quantizer.relaxation = term
        quantizer.harden()
        stored = quantizer.quantized(term.weight, bits)
        torch.testing.assert_close(stored, torch.tensor(case["weight"]), atol=1e-6, rtol=1e-5)


def test_tokens_on_which_high_and_low_agree_come_from_high():
    case = REFERENCE["token_merging"]
    high, medium, low = (torch.tensor(case[key]) for key in ("high", "medium", "low"))
    mixed = merge_tokens(high, medium, low, (0.4, 0.3, 0.3))
    torch.testing.assert_close(mixed, torch.tensor(case["mixed"]), atol=1e-6, rtol=1e-5)
    for image, top in enumerate(case["top"]):
        assert torch.equal(mixed[image, top], high[image, top])


def test_all_widths_get_one_mixed_feature():
    backbone = BACKBONES["digits_resnet"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = backbone.network().eval()
    method = create("quept", {}, GROUPS.widths, GROUPS)
    model = method.build(network, backbone.blocks).eval()
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    model.search_step_sizes(x, "minmax")
    (hooks,) = method.passes()
    quantized = dict.fromkeys(GROUPS.widths, x)
    unit = model.units[0]
    hooks.hand_on(unit, quantized, torch.Generator().manual_seed(0))
    (mixed,) = {id(feature): feature for feature in quantized.values()}.values()
    outputs = torch.stack([propagate(unit, x, width) for width in GROUPS.widths])
    assert ((mixed <= outputs.amax(0) + 1e-6) & (mixed >= outputs.amin(0) - 1e-6)).all(), "a mix of the widths"


def test_ranks_grow_from_the_highest_group_to_the_lowest():
    (hooks,) = create("quept", {}, GROUPS.widths, GROUPS).passes()
    assert hooks.ranks == {3: 48, 4: 48, 5: 32, 6: 32, 7: 16, 8: 16}


def test_it_needs_three_groups():
    with pytest.raises(InputError, match="three bit groups"):
        create("quept", {}, GROUPS.widths, None)
