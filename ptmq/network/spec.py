"""What decides how a network is quantized, before anything is calibrated."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ptmq.common.bits import FP, BitWidth
from ptmq.common.errors import InputError, one_of
from ptmq.quantization.weight_quantizer import TIES

EDGES = ("layers", "units")
TARGETS = ("none", "onnx")


@dataclass(frozen=True)
class Rule:
    """Widths that a layer keeps whatever is selected, of its weight and of what enters it; None: the selected one."""

    weight: int | None = None
    activation: int | None = None

    @classmethod
    def parse(cls, text: Any) -> "Rule":
        """Read 'FP', 'W8', 'W8A8' or 8. Raises InputError for anything else."""
        if isinstance(text, Rule):
            return text
        if text in ("FP", "fp", FP):
            return cls(FP)
        match = re.fullmatch(r"[Ww]?(\d+)(?:[Aa](\d+))?", str(text))
        if not match:
            raise InputError(f"a rule must be 'FP', or widths such as 'W8A8' or 'W8'. Got {text!r}.")
        weight, activation = int(match[1]), int(match[2]) if match[2] else None
        BitWidth(weight, FP if activation is None else activation)  # says what is wrong with them
        return cls(weight, activation)


@dataclass(frozen=True)
class QuantizationSpec:
    """What decides how a network is quantized, before anything is calibrated.

    blocks: names of its reconstruction blocks, with wildcards ('layer1.*'), or None: they are found · widths: every
    width that it shall be able to take · edge_bits: width of the weights at the edges, and of what enters the last
    layer · quantize_softmax: of attention; else it stays in floating point · edges: `layers`, the first and the last
    layer, or `units`, all layers of stem and head · keep_fp: layers and parameters that stay in floating point, by
    name, with wildcards · rules: widths of single layers, by name, with wildcards: {'head.*': 'W8A8', 'gate': 'FP'};
    of several that fit, the last counts · strict: refuse a network with weights that are not quantized and not named ·
    anchor: the width whose error decides the weights' grid where all widths share one (nested); 0: every width has a
    grid of its own · ties: where one code for all widths goes in the middle between two codes of a width, `even` or
    `up` · correction: what every layer is corrected by at every width, one of `ptmq.quantization.quantizer.KINDS` ·
    target: what the model is to run on, `none` or `onnx`; for `onnx` integer kernels compute just what the model
    computes, see `ptmq.network.graph.deployable`.
    """

    blocks: Sequence[str] | None
    widths: Sequence[BitWidth]
    edge_bits: int = 8
    quantize_softmax: bool = False
    edges: str = "layers"
    keep_fp: Sequence[str] = ()
    rules: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = True
    anchor: int = 0
    ties: str = "even"
    correction: str = "none"
    target: str = "none"

    def __post_init__(self) -> None:
        widths = tuple(sorted(BitWidth.parse(width) for width in self.widths))
        if not widths:
            raise InputError("a multi-bit model needs at least one width, such as W4A4.")
        one_of("edges", self.edges, EDGES)
        one_of("target", self.target, TARGETS)
        one_of("ties", self.ties, TIES)
        rules = {pattern: Rule.parse(rule) for pattern, rule in dict(self.rules).items()}
        keep_fp = (self.keep_fp,) if isinstance(self.keep_fp, str) else tuple(self.keep_fp)
        blocks = None if self.blocks is None else tuple(self.blocks)
        for name, value in (("widths", widths), ("blocks", blocks), ("keep_fp", keep_fp), ("rules", rules)):
            object.__setattr__(self, name, value)

    @property
    def weight_bits(self) -> list[int]:
        """Of every width, lowest first."""
        return [width.weight for width in self.widths]

    @property
    def activation_bits(self) -> list[int]:
        """Of every width, lowest first."""
        return [width.activation for width in self.widths]

    def rule(self, name: str) -> Rule | None:
        """The rule for a layer; FP where it is kept."""
        if self.keeps(name):
            return Rule(FP)
        fitting = [rule for pattern, rule in self.rules.items() if fnmatchcase(name, pattern)]
        return fitting[-1] if fitting else None

    def keeps(self, name: str) -> bool:
        """Whether a layer or a parameter is named in `keep_fp`."""
        return any(fnmatchcase(name, pattern) for pattern in self.keep_fp)

    def require_fits(self, names: Iterable[str]) -> None:
        """Raise InputError where a rule or an entry of `keep_fp` fits none of the names: it may be misspelt."""
        known = sorted(set(names))
        for field_name, patterns in (("rules", self.rules), ("keep_fp", self.keep_fp)):
            for pattern in patterns:
                if not any(fnmatchcase(name, pattern) for name in known):
                    one_of(f"{field_name}: layer", pattern, known)
