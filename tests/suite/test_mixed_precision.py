"""Mixed precision: sensitivities, the exact search, and a network whose units have widths of their own."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.suite.mixed_precision import Choices, apply, bit_operations, completed, measure, search
from tests.toys import GROUPS, W3, W4, W8, logits, random_network, searched_model


@pytest.fixture
def model(images):
    return searched_model(images)


def test_sensitivity_is_the_divergence_of_one_unit_alone(model, images):
    choices = measure(model, images)
    assert set(choices.sensitivity) == {"blocks.0", "blocks.1"} and choices.weights["blocks.0"] == 2 * 8 * 8 * 9
    with torch.no_grad():
        model.set_bits(32, 32)
        fp = model(images).log_softmax(-1)
        model.set_bits(3, 3, unit="blocks.1")
        alone = model(images).log_softmax(-1)
    expected = float(F.kl_div(alone, fp, reduction="batchmean", log_target=True))
    assert choices.sensitivity["blocks.1"][W3] == pytest.approx(expected, rel=1e-4)
    for widths in choices.sensitivity.values():
        assert widths[W3] > widths[W8] >= 0


@pytest.mark.parametrize("seed", range(4))
def test_the_search_finds_what_brute_force_finds(seed):
    generator = torch.Generator().manual_seed(seed)
    units = [f"u{i}" for i in range(5)]
    weights = {u: int(n) for u, n in zip(units, torch.randint(10, 1000, (5,), generator=generator), strict=True)}
    draws = torch.rand(5, len(GROUPS.widths), generator=generator)
    sensitivity = {
        u: {w: float(r) / 2**w.weight for w, r in zip(GROUPS.widths, row, strict=True)}
        for u, row in zip(units, draws, strict=True)
    }
    choices = Choices(weights, sensitivity)
    every = [dict(zip(units, widths, strict=True)) for widths in product(GROUPS.widths, repeat=5)]
    for budget in (3.0, 3.7, 4.5, 6.2, 8.0):
        best = min((a for a in every if choices.average_bits(a) <= budget + 1e-9), key=choices.cost)
        found = search(choices, budget)
        assert choices.average_bits(found) <= budget + 1e-6
        assert choices.cost(found) == pytest.approx(choices.cost(best), rel=1e-6)


def test_a_budget_that_nothing_fits_is_said():
    choices = Choices({"u": 10}, {"u": {W3: 0.2, W8: 0.1}})
    with pytest.raises(
        InputError, match=r"at least 3 average bits, all units .* lowest width \(.* KiB with stem and head\). Got 2.5 "
    ):
        search(choices, 2.5)


def test_every_unit_of_an_assignment_has_a_width(model):
    """A stem has that of the block that reads it, a head that of the block before."""
    full = completed(model, {"blocks.0": W3, "blocks.1": W8})
    assert full == {"stem": W3, "blocks.0": W3, "blocks.1": W8, "head": W8}


def test_what_the_stem_puts_out_counts_for_the_first_block(model, images):
    choices = measure(model, images)
    fp = logits(model, images, FULL_PRECISION).log_softmax(-1)
    for unit in ("stem", "blocks.0"):
        model.set_bits(3, 3, unit=unit)
    with torch.no_grad():
        both = model(images).log_softmax(-1)
    expected = float(F.kl_div(both, fp, reduction="batchmean", log_target=True))
    assert choices.sensitivity["blocks.0"][W3] == pytest.approx(expected, rel=1e-4)


def test_an_assignment_switches_every_unit(model, images):
    apply(model, {"blocks.0": W3, "blocks.1": W8})
    assert [layer.bits for layer in model.layers] == [8, 3, 3, 8, 8, 8]
    assert [q.bits for q in model.units[0].quantizers] == [3], "what the stem puts out has the width of the first block"
    with torch.no_grad():
        mixed = model(images)
        apply(model, {"blocks.0": W4, "blocks.1": W8})
        apply(model, {"blocks.0": W3, "blocks.1": W8})
        assert torch.equal(model(images), mixed), "there and back"


def test_a_size_is_a_budget_too(model, images):
    choices = measure(model, images)
    fixed = [layer for layer in model.layers if layer.quantizer.fixed]
    assert choices.fixed_bits == 8 * sum(layer.weight.numel() for layer in fixed) > 0
    uniform = dict.fromkeys(choices.sensitivity, W4)
    packed = sum(layer.weight.numel() * (layer.quantizer.fixed or 4) for layer in model.layers)
    assert choices.kib(uniform) == pytest.approx(packed / 8 / 1024)
    assert choices.bits_within(choices.kib(uniform)) == pytest.approx(4)
    found = search(choices, choices.bits_within(choices.kib(uniform)))
    assert choices.kib(found) <= choices.kib(uniform) + 1e-9
    assert choices.cost(found) <= choices.cost(uniform)


def test_bit_operations_follow_the_widths_of_both_operands(model, images):
    """The toy by hand: a stem of 2 -> 8, two blocks of two 8 -> 8, all 3x3 on 6x6, and a head of 8 -> 4."""
    stem, conv, head = 36 * 8 * 2 * 9, 36 * 8 * 8 * 9, 8 * 4
    apply(model, {"blocks.0": W3, "blocks.1": W8})
    expected = stem * 8 * 8  # 8-bit pixels, weights of the edge width
    expected += conv * 3 * 3 * 2  # what the stem puts out has the width of the first block
    expected += conv * 8 * 3 + conv * 8 * 8  # the first layer of a block reads what the block before puts out
    expected += head * 8 * 8
    assert bit_operations(model, images[:1]) == expected
    model.set_bits(32, 32)
    assert bit_operations(model, images[:1]) == (stem * 8 + 4 * conv * 32 + head * 32) * 32


class Attention(nn.Module):
    """One layer before, one behind, and two products between: (n, 3, 8) -> (n, 5); `einsum` says how."""

    def __init__(self, einsum):
        super().__init__()
        self.einsum, self.embed, self.qkv, self.fc = einsum, nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(8, 5)

    def forward(self, x):
        q, k, v = self.qkv(self.embed(x)).chunk(3, -1)
        if self.einsum:
            attention = torch.einsum("...qd, ...kd -> ...qk", q, k).softmax(-1)
            return self.fc(torch.einsum("nqk,nkd", attention, v).mean(1))
        return self.fc(((q @ k.mT).softmax(-1) @ v).mean(1))


@pytest.mark.parametrize("softmax, bits", [(False, 32), (True, 4)])
@pytest.mark.parametrize("einsum", [False, True])
def test_products_of_attention_are_counted(softmax, bits, einsum):
    x = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))
    spec = QuantizationSpec(None, [W4], quantize_softmax=softmax)
    model = MultiBitModel(random_network(lambda: Attention(einsum)), spec, x)
    model.search_step_sizes(x, "minmax")
    model.set_bits(4, 4)
    layers = 3 * 64 * 8 * 8 + 3 * 192 * 4 * 4 + 40 * 8 * 8  # what enters the last layer has 8 bits
    into, out_of = 3 * 3 * 8 * 4 * 4, 3 * 8 * 3 * bits * 4
    assert bit_operations(model, x[:1]) == layers + into + out_of
