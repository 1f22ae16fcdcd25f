"""Corrections that are matched: every layer's output gets the mean and deviation that it has in floating point.

Unit by unit, and layer by layer inside a unit, with the layers before corrected already; every width on its own
features. Nothing is learned, and every image passes every layer once a width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.common.device import joined, memory_format
from ptmq.network.layers import GridLayer, QuantizedLayer
from ptmq.network.model import MultiBitModel, Unit
from ptmq.quantization.quantizer import BOUND
from ptmq.reconstruction.features import Feature, batches
from ptmq.reconstruction.settings import CorrectionSettings

AtLayer = Callable[[GridLayer, list[Tensor]], list[Tensor]]


@dataclass
class Moments:
    """Mean and variance of every channel over images and positions, (channels,) each, from sums over them."""

    count: int
    sum: Tensor
    squares: Tensor

    @classmethod
    def of(cls, outputs: Sequence[Tensor], axis: int) -> "Moments":
        """Of all batches of a layer's output, whose channels lie along `axis`."""
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for output in outputs:
            rows = output.movedim(axis, -1).flatten(0, -2)  # (values, channels)
            variance, mean = (moment.double() for moment in torch.var_mean(rows, 0, correction=0))
            count += len(rows)
            total = total.to(mean) + len(rows) * mean
            squares = squares.to(mean) + len(rows) * (variance + mean.square())
        return cls(count, total, squares)

    @property
    def mean(self) -> Tensor:
        """Of every channel, (channels,)."""
        return self.sum / self.count

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of every channel, (channels,)."""
        return (self.squares / self.count - self.mean.square()).clamp_min(0).sqrt()


def matching(fp: Moments, quantized: Moments, bias: Tensor | None, with_gain: bool) -> tuple[Tensor, Tensor]:
    """Gain and shift, (out,) each, that give the quantized output of a layer the mean and deviation of the FP one.

    The gain is bounded, and 0 where either has no variance; the shift matches the mean whatever the gain.
    """
    known = (fp.deviation > 0) & (quantized.deviation > 0) & with_gain
    ratio = torch.where(known, fp.deviation / quantized.deviation, 1.0)
    gain = ratio.clamp(1 / BOUND, BOUND) - 1
    centre = quantized.mean if bias is None else quantized.mean - bias
    return gain.float(), (fp.mean - quantized.mean - gain * centre).float()


def walk(unit: Unit, batches: Sequence[Tensor], at_layer: AtLayer) -> list[Tensor]:
    """Run a unit on all batches node by node: each node sees every image before the next node sees any.

    at_layer(layer, outputs): what a layer's outputs, one a batch, are replaced by. Returns the unit's outputs.
    """
    run, nodes = fx.Interpreter(unit.graph), list(unit.graph.graph.nodes)
    last_reader = {source: node for node in nodes for source in node.all_input_nodes}
    values: dict[fx.Node, list[Any]] = {}
    for node in nodes:
        if node.op == "output":
            break
        if node.op == "placeholder":
            values[node] = list(batches)
            continue
        on, to = unit.device, batches[0].device
        values[node] = [_run_node(run, node, values, number, on, to) for number in range(len(batches))]
        if node.op == "call_module" and isinstance(layer := unit.graph.get_submodule(node.target), QuantizedLayer):
            values[node] = at_layer(layer, values[node])
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                del values[source]
    (outputs,) = values.values()
    return outputs


def _run_node(
    run: fx.Interpreter,
    node: fx.Node,
    values: dict[fx.Node, list[Any]],
    number: int,
    on: torch.device,
    to: torch.device,
) -> Any:
    """What a node gives for one batch: computed on one device and kept on another."""
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda source: values[source][number])
    args, kwargs = tree_map_only(Tensor, lambda value: value.to(on), (args, kwargs))
    return tree_map_only(Tensor, lambda value: value.to(to), getattr(run, node.op)(node.target, args, kwargs))


def channel_axis_of(layer: GridLayer) -> int:
    """Along which axis of a layer's output its channels lie: 1 of a convolution, the last of a linear layer."""
    return -1 if layer.kind == "Linear" else 1


def corrected(layer: GridLayer, output: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """A layer's uncorrected output with gain and shift, (out,) each, of its shape."""
    offset = shift if layer.bias is None else shift - gain * layer.bias
    axis = channel_axis_of(layer)
    shape = [-1 if position == axis % output.dim() else 1 for position in range(output.dim())]
    gain, offset = gain.to(output.device), offset.to(output.device)
    return torch.addcmul(output + offset.view(shape), output, gain.view(shape))


@torch.no_grad()
def fp_moments(unit: Unit, batches: Sequence[Tensor]) -> tuple[dict[GridLayer, Moments], list[Tensor]]:
    """Moments of every layer's output in floating point over all batches, and the unit's outputs."""
    found: dict[GridLayer, Moments] = {}

    def measure(layer: GridLayer, outputs: list[Tensor]) -> list[Tensor]:
        found[layer] = Moments.of(outputs, channel_axis_of(layer))
        return outputs

    unit.set_bits(FULL_PRECISION)
    return found, walk(unit, batches, measure)


@torch.no_grad()
def match(
    unit: Unit,
    fp: Tensor,
    quantized: Mapping[BitWidth, Feature],
    settings: CorrectionSettings,
) -> tuple[Tensor, dict[BitWidth, Tensor]]:
    """Correct the layers of a unit at the widths of `quantized`; returns its outputs, in floating point and at these.

    fp, quantized: what enters the unit, (images, ...) each. No layer goes without its correction where a unit's squared
    error is less that way: that error asks for outputs of too small a deviation, and unit after unit they fade.
    """
    moments, outputs = fp_moments(unit, list(batches(fp)))
    target, results = joined(outputs, len(fp)), {}
    for width, x in quantized.items():
        unit.set_bits(width)
        for correction in unit.corrections.values():
            correction.clear(width)
        at_layer = partial(_match_layer, moments, width, settings.correction == "gain")
        results[width] = joined(walk(unit, list(batches(x)), at_layer), len(x))
    return target, results


def _match_layer(
    fp: Mapping[GridLayer, Moments], width: BitWidth, with_gain: bool, layer: GridLayer, outputs: list[Tensor]
) -> list[Tensor]:
    """Correct a layer at a width by its outputs; returns them corrected."""
    if layer.correction is None:
        return outputs
    moments = Moments.of(outputs, channel_axis_of(layer))
    gain, shift = matching(fp[layer], moments, layer.bias, with_gain)
    layer.correction.set(width, gain, shift)
    return [corrected(layer, output, gain, shift) for output in outputs]


def match_network(model: MultiBitModel, images: Tensor, settings: CorrectionSettings) -> None:
    """Correct all layers of a network at all its widths; images: (count, ...), as for `reconstruct`."""
    images = images.contiguous(memory_format=memory_format(images))
    fp, quantized = images, dict.fromkeys(model.widths, images)
    for unit in model.units:
        fp, quantized = match(unit, fp, quantized, settings)
