"""Bit-widths and bit groups: what a network can switch between."""

import re
from dataclasses import dataclass

import torch

from ptmq.errors import InputError

FP = 32  # the width that stands for "not quantized"


@dataclass(frozen=True, order=True)
class BitWidth:
    """Weight and activation width of one configuration, in bits: 2..8, or 32 for floating point."""

    weight: int
    activation: int

    def __post_init__(self):
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


@dataclass(frozen=True)
class BitGroups:
    """The set B of widths split into Low, Medium and High (PTMQ, figure 1).

    Every step of the calibration draws one width from each group.
    """

    low: tuple[BitWidth, ...]
    medium: tuple[BitWidth, ...]
    high: tuple[BitWidth, ...]

    def __post_init__(self):
        for name in ("low", "medium", "high"):
            group = tuple(BitWidth.parse(width) for width in getattr(self, name))
            if not group:
                raise InputError(f"bit group {name!r} is empty. Give it at least one width, such as W4A4.")
            object.__setattr__(self, name, group)
        for below, above in (("low", "medium"), ("medium", "high")):
            top, bottom = max(getattr(self, below)), min(getattr(self, above))
            if top >= bottom:
                raise InputError(
                    f"bit groups must be ordered: every width of {below!r} below every width of {above!r}. "
                    f"Got {top} in {below!r} and {bottom} in {above!r}."
                )

    @property
    def widths(self) -> tuple[BitWidth, ...]:
        """All of B, lowest first."""
        return tuple(sorted({*self.low, *self.medium, *self.high}))

    def draw(self, generator: torch.Generator) -> tuple[BitWidth, BitWidth, BitWidth]:
        """One width from each group (low, medium, high), uniformly.

        `generator` may live on any device; the draw itself is a handful of integers on that device.
        """
        groups = (self.low, self.medium, self.high)
        return tuple(
            group[int(torch.randint(len(group), (), generator=generator, device=generator.device))] for group in groups
        )
