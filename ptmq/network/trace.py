"""The graph of a network, and what its nodes are: layers, norms, activation functions, products."""

import operator
from collections.abc import Callable, Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ptmq.common.errors import InputError
from ptmq.network.layers import LAYERS, QuantizedLayer
from ptmq.network.recording.build import COUNTS, Builder
from ptmq.network.recording.prepare import at_inference, example_for, on_the_cpu, some_images, unwrapped
from ptmq.network.recording.record import record

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NOTHING = (nn.Identity, nn.modules.dropout._DropoutNd)  # do nothing at inference
RELU6 = (0, 6)  # the bounds that make a hardtanh or a clamp one
ACTIVATION_FUNCTIONS = (
    *(F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.sigmoid, F.hardsigmoid, F.hardtanh, F.leaky_relu, F.elu, F.mish),
    *(F.tanh, F.softplus, F.selu, F.celu, torch.relu, torch.sigmoid, torch.tanh),
)  # fmt: skip
PRODUCTS = (operator.matmul, torch.matmul, torch.bmm)  # of two activations: attention
SOFTMAX = (F.softmax, torch.softmax)
# What moves values, or pools them, and leaves their range as it is.
MOVING_FUNCTIONS = (
    *(operator.getitem, torch.flatten, torch.transpose, torch.permute, torch.reshape, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, torch.cat, torch.concat, torch.stack, torch.mean, torch.roll, torch.unbind),
    *(F.max_pool1d, F.max_pool2d, F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, torch.max_pool2d, F.interpolate),
    *(F.pixel_shuffle, F.pixel_unshuffle, F.channel_shuffle, F.fold, F.unfold),
)  # fmt: skip
MOVING_METHODS = (
    *("flatten", "transpose", "permute", "reshape", "view", "contiguous", "squeeze", "unsqueeze", "expand", "mean"),
    *("unbind", "chunk", "split", "unflatten", "swapaxes", "movedim", "narrow", "select", "repeat", "expand_as"),
    *("repeat_interleave", "clone", "reshape_as", "view_as", "roll", "to", "float", "type_as", "amax"),
)


@on_the_cpu()
def trace(network: nn.Module, example: Tensor | None = None) -> fx.GraphModule:
    """The network's graph at inference; nothing in it writes into what it is given.

    example: images that the network takes, (n, ...); None: of a size found by trial. Sizes of images become constants
    of the graph, their number does not. Raises InputError where the network cannot be followed.
    """
    network, example = unwrapped(network), example_for(network, example)
    first, second = at_inference(network), at_inference(network)
    images = some_images(example, COUNTS[0]), some_images(example, COUNTS[1]) / 2  # others: what varies shows
    try:
        return Builder(record(first, images[0]), record(second, images[1]), first).build()
    except InputError as error:
        raise InputError(f"{type(network).__name__} cannot be traced: {error}") from error
    except Exception as error:
        raise InputError(
            f"{type(network).__name__} cannot be traced: with images of shape {tuple(example.shape[1:])} it raises "
            f"{type(error).__name__}: {error}."
        ) from error


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, None for other nodes."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def input_of(node: fx.Node) -> fx.Node:
    """The node whose output a node takes first."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise InputError(f"{str(node)!r} must take its input as its first argument. Got {node.format_node()}.")
    return source


def calls(
    graph: fx.GraphModule,
    node: fx.Node,
    modules: type | tuple[type, ...] = (),
    functions: Collection[Callable] = (),
    methods: Collection[str] = (),
) -> bool:
    """True where a node calls one of the modules, of the functions or of a tensor's methods."""
    if node.op == "call_module":
        return isinstance(module_of(graph, node), modules)
    known: dict[str, Collection[Any]] = {"call_function": functions, "call_method": methods}
    return node.target in known.get(node.op, ())


def moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node only moves, joins or pools values."""
    if node.target is operator.getitem and "shape" not in moved(node)[0].meta:  # one of several outputs
        return moves(graph, moved(node)[0])
    if node.target is F.pad:  # zeros are on every grid
        return all(value in (None, 0, "constant", "reflect", "replicate", "circular") for value in _padding(node))
    return calls(graph, node, NOTHING, MOVING_FUNCTIONS, MOVING_METHODS) and isinstance(
        node.args[0], fx.Node | list | tuple
    )


def _padding(node: fx.Node) -> list[Any]:
    return [*node.args[2:], *(value for key, value in node.kwargs.items() if key in ("mode", "value"))]


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node applies an activation function."""
    return calls(graph, node, (), ACTIVATION_FUNCTIONS, ("relu", "sigmoid", "tanh"))


def relu_of(graph: fx.GraphModule, node: fx.Node) -> Callable | None:
    """F.relu or F.relu6 where a node applies that, else None."""
    if calls(graph, node, (), (F.relu, torch.relu), ("relu",)):
        return F.relu
    if calls(graph, node, (), (F.relu6,)) or (node.target is F.hardtanh and node.args[1:3] == RELU6):
        return F.relu6
    return None


def is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node is a convolution or a linear layer."""
    return isinstance(module_of(graph, node), (*LAYERS, QuantizedLayer))


def operands(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The two tensors whose product a node is, such as attention's; none of other nodes."""
    if calls(graph, node, (), PRODUCTS, ("matmul", "bmm", "__matmul__")):
        sides = node.args[:2]
    else:
        sides = node.args[1:] if node.target is torch.einsum else ()
    found = [side for side in sides if isinstance(side, fx.Node)]
    return found if len(found) == 2 else []


def is_softmax(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node is a softmax, seen through what does nothing at inference."""
    if isinstance(module_of(graph, node), NOTHING):
        return is_softmax(graph, input_of(node))
    return calls(graph, node, (), SOFTMAX, ("softmax",))


def sources_of(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The nodes that compute what a node hands on, back through everything that only moves or pools values."""
    if not moves(graph, node):
        return [node]
    return [source for part in moved(node) for source in sources_of(graph, part)]


def moved(node: fx.Node) -> list[fx.Node]:
    """What a node that moves values moves."""
    parts = node.args[0] if isinstance(node.args[0], list | tuple) else [node.args[0]]
    return [part for part in parts if isinstance(part, fx.Node)]


def channel_axis(graph: fx.GraphModule, node: fx.Node) -> int:
    """The axis of a node's output that holds channels, counted from 0; where nothing says so, as losses take it."""
    axis, dims = _channels(graph, node), len(node.meta.get("shape", ()))
    return axis if axis is not None else (1 if dims == 4 else dims - 1)


def _channels(graph: fx.GraphModule, node: fx.Node) -> int | None:
    """The axis of channels, by what computes them; None where that is not known."""
    shape = node.meta.get("shape")
    if shape is None:
        return None
    if is_layer(graph, node):
        layer: Any = module_of(graph, node)
        return len(shape) - 1 if "Linear" in (type(layer).__name__, getattr(layer, "kind", "")) else 1
    if calls(graph, node, nn.LayerNorm, [F.layer_norm]):
        return len(shape) - 1
    if calls(graph, node, NORMS, [F.group_norm, F.instance_norm]):
        return 1
    for source in node.all_input_nodes:
        axis, before = _channels(graph, source), source.meta.get("shape", ())
        if axis is not None and (moved := _moved_axis(node, axis, before, shape)) is not None:
            return moved
    return None


def _moved_axis(node: fx.Node, axis: int, before: tuple[int, ...], shape: tuple[int, ...]) -> int | None:
    """Where an axis of a node's input lies in its output."""
    dims = [arg % len(before) for arg in _integers(node.args[1:])]
    if node.target in ("permute", torch.permute):
        return dims.index(axis)
    if node.target in ("transpose", torch.transpose, "swapaxes"):
        return {dims[0]: dims[1], dims[1]: dims[0]}.get(axis, axis)
    if len(before) == len(shape) and before[axis] == shape[axis]:
        return axis
    from_end = axis - len(before)
    if axis > 1 and -from_end < len(shape) and before[from_end] == shape[from_end]:
        return len(shape) + from_end  # (n, h, w, c) as (n, h * w, c), and back
    return 1 if axis == 1 and len(shape) > 1 and before[1] == shape[1] else None


def _integers(args: Any) -> list[int]:
    flat = [item for arg in args for item in (arg if isinstance(arg, list | tuple) else [arg])]
    return [item for item in flat if isinstance(item, int)]
