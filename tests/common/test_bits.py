"""Widths and bit groups: what is accepted, what a mistake is told, what is drawn."""

import pytest
import torch

from ptmq.common.bits import FP, BitGroups, BitWidth, require_width
from ptmq.common.errors import InputError
from tests.toys import GROUPS


@pytest.mark.parametrize("text", ["W4A6", "w4a6", BitWidth(4, 6)])
def test_a_width_is_read_as_it_is_written(text):
    assert BitWidth.parse(text) == BitWidth(4, 6) == BitWidth.parse(str(BitWidth(4, 6)))


@pytest.mark.parametrize("text, message", [
    ("W4", "width 'W4' must look like W4A4"),
    ("W1A4", "weight bits must be 2..8"),
    ("W4A16", "activation bits must be 2..8"),
    ("W4A4 ", "must look like W4A4"),
])  # fmt: skip
def test_wrong_widths_are_said(text, message):
    with pytest.raises(InputError, match=message):
        BitWidth.parse(text)


@pytest.mark.parametrize("bits", [2.0, 9, 31, "4", None])
def test_bits_are_whole_numbers_of_the_range(bits):
    with pytest.raises(InputError, match="activation bits must be 2..8, or 32 for floating point"):
        BitWidth(4, bits)


def test_a_quantizer_takes_its_own_widths_and_floating_point():
    require_width(FP, [3, 4], "layer")
    with pytest.raises(ValueError, match="layer has no 5-bit step size. Calibrated widths: 3, 4."):
        require_width(5, [3, 4], "layer")


@pytest.mark.parametrize("groups, message", [
    (((), ("W4A4",), ("W8A8",)), "a bit group is empty"),
    ((("W4A4",), ("W4A4",), ("W8A8",)), "must not overlap: .* Got W4A4 in a group below W4A4."),
    ((("W3A3", "W6A6"), ("W8A8",), ("W5A5",)), "must not overlap: .* Got W6A6 in a group below W5A5."),
    ((("W4A4",),), "bit groups must be 2 to 4. Got 1."),
    ([(f"W{b}A{b}",) for b in range(3, 8)], "bit groups must be 2 to 4. Got 5."),
])  # fmt: skip
def test_wrong_groups_are_said(groups, message):
    with pytest.raises(InputError, match=message):
        BitGroups(*groups)


def test_groups_and_their_widths_are_ordered():
    groups = BitGroups(("W8A8",), ("W4A4", "W3A3"))
    assert groups.groups[1] == (BitWidth(8, 8),) and len(groups) == 2
    assert list(groups.widths) == sorted(groups.widths) == [BitWidth(b, b) for b in (3, 4, 8)]


def test_a_draw_takes_one_of_each_group_uniformly():
    generator = torch.Generator().manual_seed(0)
    drawn = [GROUPS.draw(generator) for _ in range(200)]
    for number, group in enumerate(GROUPS.groups):
        counts = [sum(draw[number] == width for draw in drawn) for width in group]
        assert sum(counts) == 200 and all(abs(count - 100) < 4 * (200 * 0.25) ** 0.5 for count in counts)
    generator.manual_seed(0)
    assert [GROUPS.draw(generator) for _ in range(200)] == drawn, "nothing but the generator decides"
