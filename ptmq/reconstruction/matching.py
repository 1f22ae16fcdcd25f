"""Corrections that are matched: every layer's output gets the mean and deviation that it has in floating point.

Unit by unit, and layer by layer inside a unit, with the layers before corrected already; every width on its own
features. Nothing is learned, and every image passes every layer once a width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import MultiBitModel, Unit
from ptmq.quantization.correction import Moments, matching
from ptmq.reconstruction.features import INFERENCE_BATCH, Features, propagate, propagate_all
from ptmq.reconstruction.settings import CorrectionSettings

AtLayer = Callable[[QuantizedLayer, list[Tensor]], list[Tensor]]


def walk(unit: Unit, x: Tensor, at_layer: AtLayer) -> None:
    """Run a unit on all images of x node by node: each node sees every image before the next node sees any.

    at_layer(layer, outputs): what a layer's outputs, a batch each, are replaced by.
    """
    run, nodes = fx.Interpreter(unit.graph), list(unit.graph.graph.nodes)
    last_reader = {source: node for node in nodes for source in node.all_input_nodes}
    values: dict[fx.Node, list[Any]] = {}
    batches = x.split(INFERENCE_BATCH)
    for node in nodes:
        if node.op == "output":
            return
        if node.op == "placeholder":
            values[node] = list(batches)
            continue
        values[node] = [_run_node(run, node, values, number, unit.device, x.device) for number in range(len(batches))]
        if node.op == "call_module" and isinstance(layer := unit.graph.get_submodule(node.target), QuantizedLayer):
            values[node] = at_layer(layer, values[node])
        for source in node.all_input_nodes:
            if last_reader[source] is node:
                del values[source]


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


def channel_axis_of(layer: QuantizedLayer) -> int:
    """Along which axis of a layer's output its channels lie: 1 of a convolution, the last of a linear layer."""
    return -1 if layer.conv is None else 1


def moments_of(layer: QuantizedLayer, outputs: Sequence[Tensor]) -> Moments:
    """Mean and deviation of a layer's output channels over all batches."""
    moments = Moments()
    for output in outputs:
        moments.add(output, channel_axis_of(layer))
    return moments


def corrected(layer: QuantizedLayer, output: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """A layer's uncorrected output with gain and shift, (out,) each, of its shape."""
    offset = shift if layer.bias is None else shift - gain * layer.bias
    axis = channel_axis_of(layer)
    shape = [-1 if position == axis % output.dim() else 1 for position in range(output.dim())]
    gain, offset = gain.to(output.device), offset.to(output.device)
    return torch.addcmul(output + offset.view(shape), output, gain.view(shape))


@torch.no_grad()
def deviations(unit: Unit, x: Tensor) -> dict[QuantizedLayer, float]:
    """The mean over channels of the standard deviation of every layer's output in floating point, for images x."""
    return {layer: float(moments.deviation.mean()) for layer, moments in fp_moments(unit, x).items()}


def fp_moments(unit: Unit, x: Tensor) -> dict[QuantizedLayer, Moments]:
    """Of every layer's output in floating point, for images x."""
    found: dict[QuantizedLayer, Moments] = {}

    def measure(layer: QuantizedLayer, outputs: list[Tensor]) -> list[Tensor]:
        found[layer] = moments_of(layer, outputs)
        return outputs

    unit.set_bits(FULL_PRECISION)
    walk(unit, x, measure)
    return found


@torch.no_grad()
def match(unit: Unit, features: Features, widths: Sequence[BitWidth], settings: CorrectionSettings) -> None:
    """Correct the layers of a unit at some widths.

    The last images, a share of settings.correction_check, take no part in matching. For each layer and width they choose
    between no correction, the shift, and where settings.correction is `gain` both: what leaves the unit the least error.
    Without such images the most is taken that settings.correction allows.
    """
    kept = len(features.fp) - round(len(features.fp) * settings.correction_check)
    fp = fp_moments(unit, features.fp[:kept])
    for width in widths:
        x = features.quantized[width]
        unit.set_bits(width)
        for layer in unit.layers:
            layer.correction.clear(width)
        choice = Choice(unit, width, x[kept:], features.target[kept:])
        walk(unit, x[:kept], partial(_match_layer, fp, choice, settings.correction == "gain"))


@dataclass
class Choice:
    """What chooses between corrections at a width: the unit's error on images x, (count, ...), with their target."""

    unit: Unit
    width: BitWidth
    x: Tensor
    target: Tensor

    def take(self, layer: QuantizedLayer, ways: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Give the layer the best of some gains and shifts, without images the last; returns it."""
        best = min(ways, key=lambda way: self._error(layer, way)) if len(self.x) else ways[-1]
        layer.correction.set(self.width, *best)
        return best

    def _error(self, layer: QuantizedLayer, way: tuple[Tensor, Tensor]) -> float:
        layer.correction.set(self.width, *way)
        return float((propagate(self.unit, self.x, self.width) - self.target).square().mean())


def _match_layer(
    fp: dict[QuantizedLayer, Moments], choice: Choice, with_gain: bool, layer: QuantizedLayer, outputs: list[Tensor]
) -> list[Tensor]:
    """Correct a layer at the width of the choice; returns its outputs with that."""
    moments = moments_of(layer, outputs)
    ways = [matching(fp[layer], moments, layer.bias, gain) for gain in (False, True)[: 1 + with_gain]]
    none = tuple(torch.zeros_like(values) for values in ways[0])
    gain, shift = choice.take(layer, [none, *ways])
    return [corrected(layer, output, gain, shift) for output in outputs]


def match_network(model: MultiBitModel, images: Tensor, settings: CorrectionSettings) -> None:
    """Correct all layers of a network at all its widths; images: (count, ...), as for `reconstruct`."""
    fp, quantized = images, dict.fromkeys(model.widths, images)
    for unit in model.units:
        features = Features(fp, quantized, propagate(unit, fp, FULL_PRECISION))
        match(unit, features, model.widths, settings)
        propagate_all(unit, quantized)
        fp = features.target
