"""The torch.fx graph of a network, and what its nodes are: layers, norms, activation functions, products."""

import operator
from collections.abc import Callable, Collection
from inspect import Parameter, signature
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptmq.common.errors import InputError
from ptmq.network.layers import LAYERS, QuantizedLayer

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NOTHING = (nn.Identity, nn.Dropout)  # do nothing at inference
NORM_STATE = ("weight", "bias", "eps", "running_mean", "running_var")
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid)
ACTIVATION_FUNCTIONS = (F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.sigmoid, torch.relu, torch.sigmoid)
PRODUCTS = (operator.matmul, torch.matmul, torch.bmm)  # of two activations: attention
SOFTMAX = (F.softmax, torch.softmax)
# What moves values, or pools them, and leaves their range as it is.
MOVING_FUNCTIONS = (
    *(operator.getitem, torch.flatten, torch.transpose, torch.permute, torch.reshape, torch.squeeze, torch.unsqueeze),
    *(torch.chunk, torch.split, torch.cat, torch.stack, torch.mean),
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.max_pool2d),
)  # fmt: skip
MOVING_METHODS = (
    *("flatten", "transpose", "permute", "reshape", "view", "contiguous", "squeeze", "unsqueeze", "expand", "mean"),
    *("unbind", "chunk", "split"),
)
MOVING_MODULES = (nn.Flatten, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.PixelUnshuffle, nn.ChannelShuffle)


def trace(network: nn.Module) -> fx.GraphModule:
    """The network's graph at inference. Raises InputError where torch.fx cannot follow it."""
    optional = {
        name: parameter.default
        for name, parameter in signature(network.forward).parameters.items()
        if parameter.default is not Parameter.empty
    }
    try:
        graph = fx.symbolic_trace(network.eval(), concrete_args=optional)
    except Exception as error:
        raise InputError(
            f"backbone {type(network).__name__} cannot be traced by torch.fx: {error}. "
            "Control flow that depends on tensor values must be moved out of forward()."
        ) from error
    # What is left of the optional arguments, now constants, are assertions of their values.
    _, *constants = (node for node in graph.graph.nodes if node.op == "placeholder")
    checks = dict.fromkeys(constants)
    for node in graph.graph.nodes:
        if any(source in checks for source in node.all_input_nodes):
            checks[node] = None
    for node in reversed(checks):
        graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):  # assertions about sizes, which the images were checked for
        if node.op == "call_function" and node.target is torch._assert:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, None for other nodes."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def input_of(node: fx.Node) -> fx.Node:
    """The node whose output a node takes first. Raises InputError where it takes none, or takes it by keyword."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        raise InputError(
            f"{str(node)!r} must take its input as its first argument, without a keyword. Got {node.format_node()}."
        )
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


def norm_of(graph: fx.GraphModule, node: fx.Node) -> SimpleNamespace:
    """Parameters and statistics of a norm, NORM_STATE, whether the graph calls its module or its function."""
    if node.op == "call_module":
        module = module_of(graph, node)
        return SimpleNamespace(**{name: getattr(module, name, None) for name in NORM_STATE})
    assert callable(node.target)
    given = signature(node.target).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    read = {
        name: operator.attrgetter(str(value.target))(graph)
        if isinstance(value, fx.Node) and value.op == "get_attr"
        else value
        for name, value in given.arguments.items()
    }
    return SimpleNamespace(**read)


def moves(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node only moves, joins or pools values."""
    return calls(graph, node, MOVING_MODULES + NOTHING, MOVING_FUNCTIONS, MOVING_METHODS)


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node applies an activation function."""
    return calls(graph, node, ACTIVATIONS, ACTIVATION_FUNCTIONS, ("relu", "relu_", "sigmoid"))


def relu_of(graph: fx.GraphModule, node: fx.Node) -> Callable | None:
    """F.relu or F.relu6 where a node applies that, else None."""
    if calls(graph, node, nn.ReLU, (F.relu, torch.relu), ("relu",)):
        return F.relu
    return F.relu6 if calls(graph, node, nn.ReLU6, (F.relu6,)) else None


def is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node is a convolution or a linear layer."""
    return isinstance(module_of(graph, node), (*LAYERS, QuantizedLayer))


def is_product(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node multiplies two matrices of activations."""
    return calls(graph, node, (), PRODUCTS, ("matmul", "bmm", "__matmul__"))


def is_softmax(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node is a softmax."""
    return calls(graph, node, nn.Softmax, SOFTMAX, ("softmax",))


def sources_of(graph: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The nodes that compute what a node hands on, back through everything that only moves or pools values."""
    if not moves(graph, node):
        return [node]
    parts = node.args[0] if isinstance(node.args[0], list | tuple) else [input_of(node)]
    return [source for part in parts if isinstance(part, fx.Node) for source in sources_of(graph, part)]
