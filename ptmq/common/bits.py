"""Bit-widths and bit groups: what a network can switch between."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from ptmq.common.errors import InputError

FP = 32  # the width that stands for "not quantized"
FEWEST_GROUPS, MOST_GROUPS = 2, 4


@dataclass(frozen=True, order=True)
class BitWidth:
    """Weight and activation width of one configuration, in bits: 2..8, or 32 for floating point."""

    weight: int
    activation: int

    def __post_init__(self) -> None:
        for field in ("weight", "activation"):
            bits = getattr(self, field)
            if not isinstance(bits, int) or (bits != FP and not 2 <= bits <= 8):
                raise InputError(f"{field} bits must be 2..8, or 32 for floating point. Got {bits}.")

    def __str__(self) -> str:
        return f"W{self.weight}A{self.activation}"

    @classmethod
    def parse(cls, text: "str | BitWidth") -> "BitWidth":
        """Read 'W4A6'. Raises InputError for anything else."""
        if isinstance(text, BitWidth):
            return text
        match = re.fullmatch(r"[Ww](\d+)[Aa](\d+)", str(text))
        if not match:
            raise InputError(f"width {text!r} must look like W4A4 (weight bits, activation bits).")
        return cls(int(match[1]), int(match[2]))


FULL_PRECISION = BitWidth(FP, FP)


def read_widths(widths: "str | BitWidth | Iterable[str | BitWidth]") -> tuple[BitWidth, ...]:
    """One width, a list of them, or a range, 'W3A3..W8A8': lowest first, each once.

    A range goes up by one bit in weights and activations, or in those alone whose ends differ. Raises InputError for
    anything else.
    """
    if isinstance(widths, str) and ".." in widths:
        first, last = (BitWidth.parse(end.strip()) for end in widths.split("..", 1))
        up = last.weight - first.weight, last.activation - first.activation
        count = max(up)
        if FP in (first.weight, last.weight) or min(up) < 0 or any(way not in (0, count) for way in up):
            raise InputError(
                f"widths {widths!r} must go up alike in weights and activations, as 'W3A3..W8A8', or in one of them, "
                "as 'W4A8..W8A8'. Else list them."
            )
        steps = [tuple(way and step for way in up) for step in range(count + 1)]
        return tuple(BitWidth(first.weight + w, first.activation + a) for w, a in steps)
    if isinstance(widths, str | BitWidth):
        return (BitWidth.parse(widths),)
    found = tuple(sorted({BitWidth.parse(width) for width in widths}))
    if not found:
        raise InputError("widths must name at least one, such as 'W4A4' or 'W3A3..W8A8'.")
    return found


def require_width(bits: int, known: Sequence[int], what: str) -> None:
    """Raise ValueError unless a quantizer of the widths `known` can take `bits`; it always can take floating point."""
    if bits != FP and bits not in known:
        raise ValueError(f"{what} has no {bits}-bit step size. Calibrated widths: {', '.join(map(str, known))}.")


class BitGroups:
    """The set B of widths split into groups, lowest first: Low, Medium and High in PTMQ (figure 1).

    Every iteration of the calibration draws one width from each group.
    """

    def __init__(self, *groups: Sequence["str | BitWidth"]):
        if not FEWEST_GROUPS <= len(groups) <= MOST_GROUPS:
            raise InputError(f"bit groups must be {FEWEST_GROUPS} to {MOST_GROUPS}. Got {len(groups)}.")
        if not all(groups):
            raise InputError("a bit group is empty. Give it at least one width, such as W4A4.")
        parsed = [tuple(BitWidth.parse(width) for width in group) for group in groups]
        self.groups = tuple(sorted(parsed, key=min))
        for below, above in pairwise(self.groups):
            if max(below) >= min(above):
                raise InputError(
                    "bit groups must not overlap: every width of one lies below every width of the next. "
                    f"Got {max(below)} in a group below {min(above)}."
                )

    @classmethod
    def split(cls, widths: Sequence[BitWidth]) -> "BitGroups":
        """Three groups of consecutive widths, as equal as can be, the larger ones higher; of two widths two groups."""
        ordered, groups = sorted(widths), min(3, len(widths))
        ends = [len(ordered) * (number + 1) // groups for number in range(groups)]
        return cls(*(ordered[start:end] for start, end in zip([0, *ends], ends, strict=False)))

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def widths(self) -> tuple[BitWidth, ...]:
        """All of B, lowest first."""
        return tuple(sorted({width for group in self.groups for width in group}))

    def draw(self, generator: torch.Generator) -> tuple[BitWidth, ...]:
        """One width from each group, lowest group first, uniformly.

        `generator` may live on any device; the draw itself is a handful of integers on that device.
        """
        return tuple(
            group[int(torch.randint(len(group), (), generator=generator, device=generator.device))]
            for group in self.groups
        )
