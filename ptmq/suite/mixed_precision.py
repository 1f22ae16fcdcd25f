"""Mixed precision: every unit of a calibrated network at a width of its own, without calibrating again.

The sensitivity of a unit at a width is KL(FP network || network with that unit alone at that width) on calibration
images; a stem, which has no choice, takes the width of the first block with it. The search picks one width a unit so
that the sum of sensitivities is least and the weights fit a budget: an integer linear program, solved exactly.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, milp
from torch import Tensor, fx

from ptmq.common.bits import FP, FULL_PRECISION, BitWidth
from ptmq.common.errors import InputError
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import MultiBitModel, Unit
from ptmq.network.trace import input_of, module_of, moved, moves, operands
from ptmq.quantization.quantizer import Quantizer
from ptmq.reconstruction.features import propagate

BITS_OF_KIB = 8 * 1024
IMAGE_BITS = 8  # of the pixels that the first layer sees
Assignment = dict[str, BitWidth]  # unit name -> width


@dataclass(frozen=True)
class Choices:
    """What can be chosen: for every unit its number of weights and its sensitivity at every width, in nats.

    fixed_bits: size of the weights that have no choice, those of stem and head.
    """

    weights: Mapping[str, int]
    sensitivity: Mapping[str, Mapping[BitWidth, float]]
    fixed_bits: int = 0

    def average_bits(self, assignment: Assignment) -> float:
        """Mean weight bits of an assignment, every weight that has a choice counted once."""
        return sum(self.weights[unit] * width.weight for unit, width in assignment.items()) / self.total

    @property
    def total(self) -> int:
        """How many weights have a choice."""
        return sum(self.weights.values())

    def kib(self, assignment: Assignment) -> float:
        """Size of the packed weights of the whole network, in KiB."""
        return (self.fixed_bits + self.total * self.average_bits(assignment)) / BITS_OF_KIB

    def bits_within(self, kib: float) -> float:
        """The average bits that make the packed weights of the whole network `kib` large."""
        return (kib * BITS_OF_KIB - self.fixed_bits) / self.total

    def cost(self, assignment: Assignment) -> float:
        """Sum of the sensitivities of an assignment, in nats."""
        return sum(self.sensitivity[unit][width] for unit, width in assignment.items())


def switchable(model: MultiBitModel) -> list[Unit]:
    """The units that have layers of no fixed width: all but stem and head."""
    return [unit for unit in model.units if any(not layer.quantizer.fixed for layer in unit.layers)]


@torch.no_grad()
def measure(model: MultiBitModel, images: Tensor) -> Choices:
    """Sensitivity of every switchable unit at every width of the model; images: (count, ...) to calibrate with."""
    sensitivity: dict[str, dict[BitWidth, float]] = {}
    x, rest = images, list(model.units)
    fp = _log_probabilities(rest, x)
    able = {unit.name for unit in switchable(model)}
    together: list[Unit] = []  # a unit with a choice, and those before it that take its width, see `completed`
    while rest:
        unit, *rest = rest
        together.append(unit)
        if unit.name in able:
            sensitivity[unit.name] = {
                width: _divergence(fp, _log_probabilities(rest, _through(together, x, width))) for width in model.widths
            }
            x, together = _through(together, x, FULL_PRECISION), []
    weights = {
        unit.name: sum(layer.shape.numel() for layer in unit.layers if not layer.quantizer.fixed)
        for unit in switchable(model)
    }
    fixed_bits = sum(layer.shape.numel() * layer.quantizer.fixed for layer in model.layers if layer.quantizer.fixed)
    return Choices(weights, sensitivity, fixed_bits)


def _through(units: Sequence[Unit], x: Tensor, width: BitWidth) -> Tensor:
    """What units, one after the other, make of x at a width."""
    for unit in units:
        x = propagate(unit, x, width)
    return x


def _log_probabilities(units: Sequence[Unit], x: Tensor) -> Tensor:
    """Those of the FP network from what enters `units`, (images, classes)."""
    return _through(units, x, FULL_PRECISION).log_softmax(-1)


def _divergence(fp: Tensor, log_p: Tensor) -> float:
    """Mean KL(FP || p) in nats."""
    return float(F.kl_div(log_p, fp, reduction="batchmean", log_target=True))


def search(choices: Choices, average_bits: float) -> Assignment:
    """The assignment of least cost whose weights have at most `average_bits` bits on average.

    For a budget of size, give `choices.bits_within(kib)`. Raises InputError where even the lowest widths do not fit.
    """
    options = [(unit, width) for unit, widths in choices.sensitivity.items() for width in widths]
    units = list(choices.sensitivity)
    bits = np.array([choices.weights[unit] * width.weight / choices.total for unit, width in options])
    one_each = np.array([[float(unit == name) for unit, _ in options] for name in units])
    solved = milp(
        c=np.array([choices.sensitivity[unit][width] for unit, width in options]),
        integrality=np.ones(len(options)),
        bounds=(0, 1),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(bits, ub=average_bits + 1e-9)],
        options={
            "mip_rel_gap": 0,
            "presolve": False,
        },  # the solver's presolve prints, and so small a problem needs none
    )
    if solved.x is None:
        lowest = {unit: min(widths) for unit, widths in choices.sensitivity.items()}
        raise InputError(
            f"the budget must be at least {choices.average_bits(lowest):.3g} average bits, all units at their lowest"
            f" width ({choices.kib(lowest):.4g} KiB with stem and head). Got {average_bits:.3g} average bits."
        )
    return {unit: width for (unit, width), taken in zip(options, solved.x, strict=True) if taken > 0.5}


def completed(model: MultiBitModel, assignment: Assignment) -> Assignment:
    """The width of every unit: one without a choice has that of the next with a choice, which reads what it gives.

    At the end it has that of the last with a choice.
    """
    full: Assignment = {}
    width = list(assignment.values())[-1]
    for unit in reversed(list(model.units)):
        width = assignment.get(unit.name, width)
        full[unit.name] = width
    return dict(reversed(full.items()))


def apply(model: MultiBitModel, assignment: Assignment) -> None:
    """Switch every unit to its width, see `completed`."""
    for unit, width in zip(model.units, completed(model, assignment).values(), strict=True):
        unit.set_bits(width)


class BitOperations(fx.Interpreter):
    """Runs a unit and counts multiplications x bits of one operand x bits of the other.

    A value has the bits of the quantizer that gave it, also where it was moved or pooled since; else floating point.
    """

    def __init__(self, unit: Unit, entering: int):
        super().__init__(unit.graph)
        self.graph_module, self.entering = unit.graph, entering
        self.bits: dict[fx.Node, int] = {}
        self.found = 0

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node; what it takes is counted."""
        out = super().run_node(n)
        module = module_of(self.graph_module, n)
        self.bits[n] = FP
        if n.op == "placeholder":
            self.bits[n] = self.entering
        elif n.op == "output" or moves(self.graph_module, n):
            self.bits[n] = max((self.bits[source] for source in moved(n)), default=FP)
        elif isinstance(module, Quantizer):
            self.bits[n] = module.bits
        elif isinstance(module, QuantizedLayer):
            source = input_of(n)
            self.found += module.multiplications(self.env[source], out) * module.bits * self.bits[source]
        elif sides := operands(self.graph_module, n):
            summed = _summed(n, *(self.env[side] for side in sides))
            self.found += out.numel() * summed * math.prod(self.bits[side] for side in sides)
        return out

    @property
    def leaving(self) -> int:
        """The bits of the unit's output."""
        return next(bits for node, bits in self.bits.items() if node.op == "output")


def _summed(node: fx.Node, a: Tensor, b: Tensor) -> int:
    """Over how many products each value of a product of tensors is summed."""
    if node.target is not torch.einsum:
        return a.shape[-1]
    terms, arrow, out = str(node.args[0]).replace(" ", "").partition("->")
    if not arrow:  # what occurs once
        out = "".join(letter for letter in terms if terms.count(letter) == 1)
    sizes = {letter: size for term, x in zip(terms.split(","), (a, b), strict=True)
             for letter, size in [*_sizes(term, x)]}  # fmt: skip
    return math.prod(size for letter, size in sizes.items() if letter not in out)


def _sizes(term: str, x: Tensor) -> Iterator[tuple[str, int]]:
    """The size behind every letter of a term of einsum."""
    before, _, behind = term.partition("...")
    yield from zip(before, x.shape, strict=False)
    yield from zip(reversed(behind), reversed(x.shape), strict=False)


@torch.no_grad()
def bit_operations(model: MultiBitModel, image: Tensor) -> int:
    """Bit operations: the sum over layers and attention products of multiplications x bits of both operands.

    image: (1, ...), of which only the size matters; pixels have 8 bits. Softmax is in floating point, unless quantized.
    """
    x, bits, found = image, IMAGE_BITS, 0
    for unit in model.units:
        counter = BitOperations(unit, bits)
        x = counter.run(x)
        bits, found = counter.leaving, found + counter.found
    return found
