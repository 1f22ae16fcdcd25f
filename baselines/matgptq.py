"""MatGPTQ: one 8-bit code of which every width is a slice, solved column by column.

Paper: https://arxiv.org/abs/2602.03537, for language models. A slice of r bits is the code's r top bits, half rounded
up; `ties: even` is ours. Each code has the least summed error over some widths; what error is left, their mean, is
taken from the columns of the weight that are not rounded yet, by the second moments of the layer's input (GPTQ,
https://arxiv.org/abs/2210.17323). A convolution's columns are its unfolded patches; each group has moments of its own.
Nothing is learned by gradient. Departures: activations are quantized, with the step sizes of the suite's search. The
moments are taken as published, with the blocks before quantized, here at the highest width, and the block itself in
floating point. The code is solved for the lowest two widths and the highest, which are the publication's 3, 4 and 8 of
the widths 3 to 8. A row without a negative weight keeps its whole range, of which the released code clips a half.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.errors import InputError, one_of, require
from ptmq.methods.interface import Method, register
from ptmq.network.layers import GridLayer
from ptmq.network.model import MultiBitModel, Unit
from ptmq.network.place import QuantizationSpec
from ptmq.quantization.step_size import PARENT_BITS, SMALLEST_STEP
from ptmq.quantization.weight_quantizer import TIES, NestedWeightQuantizer, narrowed
from ptmq.reconstruction.engine import Progress, ResumeFile, silent
from ptmq.reconstruction.features import propagate
from ptmq.reconstruction.settings import CorrectionSettings, Execution

CODES = 2**PARENT_BITS
BATCH = 16  # images whose patches are unfolded at a time


def sliced(widths: Sequence[int], ties: str = "up") -> Tensor:
    """What each of the 256 codes is at each width, as a code of 8 bits: (widths, 256)."""
    codes, lost = torch.arange(CODES), [PARENT_BITS - bits for bits in widths]
    slices = [narrowed(codes, shift, ties).clamp_max((CODES >> shift) - 1) << shift for shift in lost]
    return torch.stack(slices)


def select(weight: Tensor, step: Tensor, slices: Tensor) -> tuple[Tensor, Tensor]:
    """The code of least summed squared error over the widths for each weight, and its mean error; (rows,) each.

    step: (rows,); the zero point is the middle code · slices: what each code is at each width, (widths, 256).
    """
    values = (slices - CODES // 2).to(weight)
    errors = weight[:, None, None] - step[:, None, None] * values  # (rows, widths, 256)
    code = errors.square().sum(1).argmin(1)
    return code, errors.mean(1).gather(1, code[:, None])[:, 0]


def symmetric_step(rows: Tensor) -> Tensor:
    """The 8-bit step of the grid that spans -max .. max of each row's absolute weights; (rows, columns) -> (rows,)."""
    return (2 * rows.abs().amax(1) / (CODES - 1)).clamp_min(SMALLEST_STEP)


def solve(rows: Tensor, step: Tensor, moments: Tensor, slices: Tensor, damping: float) -> Tensor:
    """The codes of a weight, (rows, columns), each column rounded and its error taken from those after it.

    moments: second moments of the layer's input, (columns, columns), up to a factor · slices: see `select`.
    """
    rows, moments = rows.clone(), moments.clone()
    dead = moments.diagonal() == 0
    rows[:, dead] = 0
    diagonal = moments.diagonal()
    diagonal[dead] = 1
    diagonal += damping * diagonal.mean()
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    codes = torch.zeros_like(rows, dtype=torch.uint8)
    for column in range(rows.shape[1]):
        code, error = select(rows[:, column], step, slices)
        codes[:, column] = code.to(torch.uint8)
        rows[:, column + 1 :] -= torch.outer(error / upper[column, column], upper[column, column + 1 :])
    return codes


def columns_of(layer: GridLayer, x: Tensor) -> Tensor:
    """A layer's input as the columns of its weight, (groups, columns, values): patches of a convolution, or tokens."""
    if layer.kind == "Linear":
        return x.flatten(0, -2).T[None]
    if layer.kind != "Conv2d":
        raise InputError(f"matgptq solves linear layers and nn.Conv2d. Got {layer.kind}. Name it in keep_fp.")
    moves = dict(layer.moves)
    groups = moves.pop("groups")
    patches = F.unfold(x, layer.weight.shape[2:], **moves)  # (images, in * kh * kw, positions)
    return patches.transpose(0, 1).flatten(1).unflatten(0, (groups, -1))


@torch.no_grad()
def second_moments(unit: Unit, images: Tensor) -> dict[GridLayer, Tensor]:
    """Sums of x · xᵀ over what enters every layer of a unit in floating point: (groups, columns, columns) each."""
    moments: dict[GridLayer, Tensor] = {}

    def add(layer: GridLayer) -> Callable[[Any, tuple[Tensor, ...]], None]:
        def hook(_: Any, entering: tuple[Tensor, ...]) -> None:
            columns = columns_of(layer, entering[0])
            moments[layer] = moments.get(layer, 0) + columns @ columns.transpose(1, 2)

        return hook

    hooks = [layer.register_forward_pre_hook(add(layer)) for layer in unit.layers]
    unit.set_bits(FULL_PRECISION)
    for batch in images.split(BATCH):
        unit(batch.to(unit.device))
    for handle in hooks:
        handle.remove()
    return moments


@dataclass(frozen=True)
class MatGPTQSettings(CorrectionSettings):
    """How much the moments are damped, and how a code is sliced."""

    damping: float = 0.01  # share of the mean second moment that is added to each
    ties: str = "up"  # where a code in the middle between two of a width goes; even: the one that is even

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("ties", self.ties, TIES)
        require(self.damping > 0, "damping", "above 0", self.damping)


@register
class MatGPTQ(Method):
    """One 8-bit code of which every width is a slice, solved column by column; weights alone."""

    name = "matgptq"
    style = ("MatGPTQ", "#999933", ">", (0, (2, 1)))
    Settings = MatGPTQSettings

    def spec(self, blocks: Sequence[str] | None, **conversion: Any) -> QuantizationSpec:
        """With one code for all widths."""
        return super().spec(blocks, **{"anchor": PARENT_BITS, "ties": self.settings.ties, **conversion})

    def calibrate(
        self,
        model: MultiBitModel,
        images: Tensor,
        seed: int,
        execution: Execution = Execution(),  # noqa: B008 (frozen)
        resume: ResumeFile | None = None,
        progress: Progress = silent,
    ) -> list[dict[str, Any]]:
        """Search the activations' step sizes, then solve layer by layer; correct what has come of it, if asked for."""
        self.search_step_sizes(model, images)
        x = images
        for unit in model.units:
            for layer, moments in second_moments(unit, x).items():
                self.solve(layer, moments)
            x = propagate(unit, x, model.widths[-1])
        self.correct(model, images)
        return []

    def solve(self, layer: GridLayer, moments: Tensor) -> None:
        """Set a layer's grid and code, group by group."""
        quantizer = layer.quantizer
        assert isinstance(quantizer, NestedWeightQuantizer)
        slices = sliced(sorted({*quantizer.widths[:2], quantizer.widths[-1]}), self.settings.ties)
        rows = layer.weight.flatten(1)
        step = symmetric_step(rows)
        groups = zip(rows.chunk(len(moments)), step.chunk(len(moments)), moments, strict=True)
        code = torch.cat([solve(*group, slices, self.settings.damping) for group in groups])
        quantizer.set_code(code.view(quantizer.shape), step, torch.full_like(step, CODES // 2, dtype=torch.uint8))
