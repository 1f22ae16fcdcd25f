"""One code for all widths: the grid, the codes, the bit planes."""

from fractions import Fraction

import pytest
import torch

from ptmq.quantization.step_size import SEARCHES, nested
from ptmq.quantization.weight_quantizer import TIES, NestedWeightQuantizer, narrowed, pack_bits, unpack_bits

WIDTHS = [3, 4, 5, 6, 7, 8]


def weight_of(kind: str, shape=(6, 4, 3, 3)) -> torch.Tensor:
    """Weights that lie around 0, on one side of it, or (in some channels) nowhere else."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.1
    if kind == "positive":
        weight = weight.abs() + 0.3
    if kind == "negative":
        weight = -weight.abs() - 0.3
    if kind == "dead":
        weight[::2] = 0
    return weight


def searched(
    weight: torch.Tensor, widths=WIDTHS, fixed=None, anchor: int = 4, search="shrink"
) -> NestedWeightQuantizer:
    quantizer = NestedWeightQuantizer(weight.shape, widths, fixed, anchor)
    quantizer.search_step_sizes(weight, search)
    return quantizer


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 100])
def test_packed_bits_come_back(count):
    bits = torch.randint(0, 2, (count,), generator=torch.Generator().manual_seed(count))
    packed = pack_bits(bits)
    assert packed.dtype == torch.uint8 and len(packed) == -(-count // 8)
    assert torch.equal(unpack_bits(packed, count), bits.to(torch.uint8))


@pytest.mark.parametrize("kind", ["both", "positive", "negative", "dead"])
@pytest.mark.parametrize("search", sorted(SEARCHES))
class TestGrid:
    def test_every_coarser_grid_is_part_of_the_finest_and_holds_0(self, kind, search):
        quantizer = searched(weight_of(kind), search=search)
        finest, zero = quantizer.grid(8)
        values = (torch.arange(256) - zero.flatten()[:, None]) * finest.flatten()[:, None]  # (out, 256)
        for bits in WIDTHS:
            step, zero = quantizer.grid(bits)
            assert torch.equal(zero, zero.round()) and zero.min() >= 0 and zero.max() <= 2**bits - 1
            coarse = (torch.arange(2**bits) - zero.flatten()[:, None]) * step.flatten()[:, None]
            assert torch.equal(coarse, values[:, :: 2 ** (8 - bits)])

    def test_no_weight_is_further_from_its_code_than_from_the_end_of_the_range(self, kind, search):
        weight = weight_of(kind)
        quantizer = searched(weight, search=search)
        for bits in WIDTHS:
            step, zero = quantizer.grid(bits)
            inside = torch.maximum(torch.minimum(weight, (2**bits - 1 - zero) * step), -zero * step)
            off = (quantizer.quantized(weight, bits) - inside).abs() / step
            assert off.max() <= 0.5 + 2.0 ** -(9 - bits) + 1e-4, "the byte, rounded, is rounded once more"


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("bits", WIDTHS)
def test_a_width_is_the_byte_rounded_to_nearest(bits, ties):
    quantizer = NestedWeightQuantizer((256, 1), WIDTHS, ties=ties)
    quantizer.set_code(torch.arange(256, dtype=torch.uint8)[:, None], torch.ones(256), torch.zeros(256).byte())
    step = 2 ** (8 - bits)
    rounded = [round(Fraction(code, step)) if ties == "even" else (code + step // 2) // step for code in range(256)]
    assert quantizer.codes(None, bits).flatten().tolist() == [min(code, 2**bits - 1) for code in rounded]


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7])
def test_ties_upwards_move_codes_by_half_a_step_of_the_byte_and_even_ones_by_none(bits):
    inside = torch.arange(256 - 2 ** (9 - bits))  # whole periods, below what is clipped
    moved = {
        ties: float((narrowed(inside, 8 - bits, ties) * 2 ** (8 - bits) - inside).double().mean()) for ties in TIES
    }
    assert moved == {"even": 0.0, "up": 0.5}


def test_a_learned_bit_is_added_to_the_byte_rounded_down():
    quantizer = searched(weight_of("both"))
    planes = torch.randint(0, 2, (2, *quantizer.shape), generator=torch.Generator().manual_seed(1))
    before = quantizer.codes(None, 5)
    quantizer.set_rounding(planes, {3: torch.ones(()), 4: torch.ones(())})
    for plane, bits in zip(planes, (3, 4), strict=True):
        expected = ((quantizer.code.int() >> (8 - bits)) + plane).clamp_max(2**bits - 1)
        assert torch.equal(quantizer.codes(None, bits).int(), expected)
    assert torch.equal(quantizer.codes(None, 5), before), "a width whose rounding is not learned"


@pytest.mark.parametrize("ties", TIES)
@pytest.mark.parametrize("bits", [3, 4, 5, 6])
def test_a_byte_that_absorbs_a_plane_rounds_as_it_says_and_moves_no_further(bits, ties):
    every = torch.arange(256, dtype=torch.uint8).repeat(2)[:, None]  # with both bits
    plane = torch.arange(512)[:, None] // 256
    quantizer = NestedWeightQuantizer((512, 1), WIDTHS, ties=ties)
    quantizer.set_code(every, torch.ones(512), torch.zeros(512).byte())
    nearest = quantizer.codes(None, bits)
    low = torch.stack([plane.flip(0)] * (bits - 3) + [plane])
    quantizer.set_rounding(low, dict.fromkeys(range(3, bits + 1), torch.ones(())))
    before = {width: quantizer.codes(None, width) for width in range(3, bits + 1)}
    agreed = nearest == before[bits]
    quantizer.absorb()
    assert quantizer.learned.tolist() == list(range(3, bits)) and len(quantizer.planes) == bits - 3
    assert all(torch.equal(quantizer.codes(None, width), codes) for width, codes in before.items())
    assert torch.equal(quantizer.code[agreed], every[agreed]), "a byte that rounds so already stays"
    distance = (quantizer.code.int() - every.int()).abs()
    assert 0 < distance.max() <= 2 ** (7 - bits) + 1, "at most half a step and past the tie"
    nearer = quantizer.code.int() + torch.sign(every.int() - quantizer.code.int())
    rounded = narrowed(nearer, 8 - bits, ties).clamp_max(2**bits - 1)
    assert (rounded != before[bits])[~agreed].all(), "one less far, and it would round otherwise"


def test_more_bits_are_nearer_to_the_weight():
    weight = weight_of("both", (16, 32, 3, 3))
    quantizer = searched(weight)
    errors = [float((quantizer.quantized(weight, bits) - weight).square().mean()) for bits in WIDTHS]
    assert errors == sorted(errors, reverse=True) and errors[0] > 10 * errors[-1]


def test_the_anchor_decides_which_width_is_served_best():
    weight = weight_of("both", (64, 64))
    error = {
        (anchor, bits): float((searched(weight, anchor=anchor).quantized(weight, bits) - weight).abs().pow(2.4).mean())
        for anchor in (3, 8)
        for bits in (3, 8)
    }
    assert error[3, 3] < error[8, 3] and error[8, 8] < error[3, 8]


def test_a_fixed_width_is_kept_whatever_is_selected():
    quantizer = searched(weight_of("both"), fixed=8)
    quantizer.set_bits(3)
    assert quantizer.bits == 8 and quantizer.widths == [8] and quantizer.bits_per_weight() == 8


def test_the_state_alone_gives_every_weight_again():
    weight = weight_of("both")
    quantizer = searched(weight)
    quantizer.set_rounding(torch.ones(1, *weight.shape, dtype=torch.int8), {3: torch.ones(())})
    other = NestedWeightQuantizer(weight.shape, WIDTHS)
    other.load_state_dict(quantizer.state_dict())
    for bits in WIDTHS:
        one, two = quantizer.quantized(weight, bits), other.quantized(None, bits)
        assert torch.equal(one, two) and one.stride() == two.stride()


def test_bits_for_each_weight_are_those_of_byte_and_planes():
    quantizer = searched(weight_of("both", (8, 16)))
    assert quantizer.bits_per_weight() == 8
    quantizer.set_rounding(torch.zeros(2, 8, 16), {3: torch.ones(()), 4: torch.ones(())})
    assert quantizer.bits_per_weight() == 10


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_of_the_grids_of_a_range_the_first_holds_it_and_the_others_have_its_width(bits):
    low, high = torch.tensor([-1.0, -0.2, 0.5, -2.0, 0.0]), torch.tensor([1.0, 1.3, 1.5, -1.0, 0.0])
    first, *others = nested(3)(low, high, bits)
    low, high = low.clamp_max(0), high.clamp_min(0)
    for _, zero in (first, *others):
        assert ((zero >= 0) & (zero <= 2**bits - 1) & (zero % 2 ** (bits - 3) == 0)).all()
    step, zero = first
    assert (-zero * step <= low + 1e-6).all() and ((2**bits - 1 - zero) * step >= high - 1e-6).all()
    for step, _ in others:
        torch.testing.assert_close(step * (2**bits - 1), (high - low).clamp_min(1e-8 * (2**bits - 1)))
        assert (step <= first[0] * (1 + 1e-6)).all(), "no grid that holds the range is narrower than it"
