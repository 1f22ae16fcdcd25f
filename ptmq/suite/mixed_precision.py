"""Mixed precision: every unit of a calibrated network at a width of its own, without calibrating again.

The sensitivity of a unit at a width is KL(FP network || network with that unit alone at that width) on calibration
images. The search picks one width a unit so that the sum of sensitivities is least and the weights fit a budget: an
integer linear program, solved exactly.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import LinearConstraint, milp
from torch import Tensor

from ptmq.common.bits import FP, FULL_PRECISION, BitWidth
from ptmq.common.errors import InputError
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import MultiBitModel, Unit
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
    while rest:
        unit, *rest = rest
        if unit.name in able:
            sensitivity[unit.name] = {
                width: _divergence(fp, _log_probabilities(rest, propagate(unit, x, width))) for width in model.widths
            }
        x = propagate(unit, x, FULL_PRECISION)
    weights = {
        unit.name: sum(layer.quantizer.shape.numel() for layer in unit.layers if not layer.quantizer.fixed)
        for unit in switchable(model)
    }
    quantizers = (layer.quantizer for layer in model.layers)
    fixed_bits = sum(quantizer.shape.numel() * quantizer.fixed for quantizer in quantizers if quantizer.fixed)
    return Choices(weights, sensitivity, fixed_bits)


def _log_probabilities(units: Sequence[Unit], x: Tensor) -> Tensor:
    """Those of the FP network from what enters `units`, (images, classes)."""
    for unit in units:
        x = propagate(unit, x, FULL_PRECISION)
    return x.log_softmax(-1)


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


def apply(model: MultiBitModel, assignment: Assignment) -> None:
    """Switch every unit to its width; one without a choice (stem, head) takes that of the first unit with a choice."""
    first = next(iter(assignment.values()))
    for unit in model.units:
        unit.set_bits(assignment.get(unit.name, first))


@torch.no_grad()
def bit_operations(model: MultiBitModel, image: Tensor) -> int:
    """Bit operations: the sum over the layers of multiplications x weight bits x bits of the input.

    image: (1, ...), of which only the size matters. A layer's input has the bits of the quantizer that gave it or,
    where it was pooled or reshaped since, of the one that ran last; floating point where none ran.
    """
    # outputs are kept, so that no other takes their place in memory
    given: dict[int, tuple[int, Tensor]] = {image.data_ptr(): (IMAGE_BITS, image)}
    last, found = FP, 0

    def remember(quantizer: Quantizer, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal last
        last = quantizer.bits
        given[out.data_ptr()] = (last, out)

    def count(layer: QuantizedLayer, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal found
        entering = args[0].data_ptr()
        bits = given[entering][0] if entering in given else last
        found += out[0].numel() * layer.quantizer.shape[1:].numel() * layer.bits * bits

    hooks = [quantizer.register_forward_hook(remember) for quantizer in model.quantizers]
    hooks += [layer.register_forward_hook(count) for layer in model.layers]
    try:
        model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found
