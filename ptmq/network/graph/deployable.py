"""The deployable form: quantizers where integer kernels need them, and biases that they can add.

An integer kernel reads tensors that lie on one grid each, and writes one. So what enters a layer is quantized right
there, behind a concatenation or a pooling and not before it; what is summed, concatenated or pooled into a quantized
tensor is quantized itself, and so are the images. A bias is a multiple of the product of the two step sizes. What is
exported then is what was calibrated, value for value.
"""

import operator
from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import fx

from ptmq.network.graph.blocks import is_open
from ptmq.network.layers import BiasGrid, QuantizedLayer
from ptmq.network.trace import calls, input_of, is_softmax, module_of, moved, moves, operands, relu_of
from ptmq.quantization.activation_quantizer import ActivationQuantizer

INTEGER_BITS = 8  # of what is quantized for the sake of the kernels alone
JOINING = (torch.cat, torch.concat, torch.stack)
POOLING = (torch.mean, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d)
ADDING = (operator.add, operator.iadd, torch.add)


def origin(graph: fx.GraphModule, node: fx.Node) -> fx.Node:
    """The node whose values a node hands on, back through what moves them and leaves them on their grid."""
    while moves(graph, node) and not (_pools(graph, node) or _joins(graph, node)):
        (node,) = moved(node)
    return node


def deployable_outputs(
    graph: fx.GraphModule, layers: Iterable[fx.Node], fixed: Mapping[fx.Node, int], softmax: bool
) -> dict[fx.Node, int | None]:
    """The nodes whose outputs are quantized, in order, each with the width that it keeps; None: the selected one.

    fixed: widths of what enters certain layers, by `origin` · softmax: that of attention has the selected width, too.
    """
    found: dict[fx.Node, int | None] = {}
    waiting: list[tuple[fx.Node, int | None]] = [(origin(graph, input_of(node)), None) for node in layers]
    for node in graph.graph.nodes:
        sides = operands(graph, node)
        waiting += [(origin(graph, side), None if softmax or not is_softmax(graph, side) else INTEGER_BITS)
                    for side in sides]  # fmt: skip
    waiting.sort(key=lambda place: place[1] is not None)  # what a layer reads has its width, whoever else reads it
    while waiting:
        node, bits = waiting.pop(0)
        if node in found or not (is_open(node) or node.op == "placeholder"):
            continue
        found[node] = bits = INTEGER_BITS if node.op == "placeholder" else fixed.get(node, bits)
        waiting += [(origin(graph, part), bits if _pools(graph, node) else INTEGER_BITS)
                    for part in _parts(graph, node)]  # fmt: skip
    return {node: found[node] for node in graph.graph.nodes if node in found}


def _parts(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """What is summed, concatenated or pooled into a node."""
    if _pools(graph, node) or _joins(graph, node):
        return moved(node)
    total = input_of(node) if relu_of(graph, node) else node
    added = calls(graph, total, (), ADDING, ("add", "__add__", "add_"))
    return [side for side in total.args[:2] if isinstance(side, fx.Node)] if added else []


def _pools(graph: fx.GraphModule, node: fx.Node) -> bool:
    return calls(graph, node, (), POOLING, ("mean",))


def _joins(graph: fx.GraphModule, node: fx.Node) -> bool:
    return calls(graph, node, (), JOINING)


def give_bias_grids(graph: fx.GraphModule) -> None:
    """Let every convolution between two quantizers have its bias on the grid of an integer kernel, in place."""
    for node in graph.graph.nodes:
        layer = module_of(graph, node)
        if not isinstance(layer, QuantizedLayer) or layer.kind not in ("Conv1d", "Conv2d", "Conv3d"):
            continue
        before = module_of(graph, origin(graph, input_of(node)))
        users = [user for reader in node.users for user in (reader.users if relu_of(graph, reader) else [reader])]
        if isinstance(before, ActivationQuantizer) and all(
            isinstance(module_of(graph, user), ActivationQuantizer) for user in users
        ):
            layer.bias_grid = BiasGrid(before)
