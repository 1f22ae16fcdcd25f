"""From a network to a chain of quantized units, by rewriting its torch.fx graph.

trace -> fold BatchNorm -> place activation quantizers -> replace layers -> cut into units.
No backbone is written twice: whatever torch.fx can trace is quantized by these five steps.
"""

import operator
from collections.abc import Sequence
from fnmatch import fnmatchcase
from inspect import Parameter, signature

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from ptmq.errors import InputError
from ptmq.layers import ActivationQuantizer, QuantizedLayer

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NOTHING = (nn.Identity, nn.Dropout)  # do nothing at inference
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid)
ACTIVATION_FUNCTIONS = (F.relu, F.relu6, F.silu, F.gelu, F.hardswish, F.sigmoid, torch.relu, torch.sigmoid)
SUMS = (operator.add, operator.iadd, torch.add)
STEM, HEAD = "stem", "head"


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
    graph.recompile()
    return graph


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, None for other nodes."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def fold_norms(graph: fx.GraphModule) -> fx.GraphModule:
    """Fold every BatchNorm into the convolution or linear layer before it, in place; drop no-op modules.

    Nothing is left that would need its statistics re-estimated when the bit-width switches.
    Raises InputError where a BatchNorm has no layer of its own before it.
    """
    for node in list(graph.graph.nodes):
        module = module_of(graph, node)
        if isinstance(module, NORMS):
            source = node.args[0]
            layer = module_of(graph, source)
            if not isinstance(layer, LAYERS) or len(source.users) > 1:
                raise InputError(
                    f"BatchNorm {node.target!r} does not directly follow a convolution or linear layer "
                    "of its own, so it cannot be folded. Use a backbone in the layer-norm-activation order."
                )
            fuse = fuse_conv_bn_eval if isinstance(layer, nn.Conv2d) else fuse_linear_bn_eval
            graph.set_submodule(source.target, fuse(layer.eval(), module.eval()))
        if isinstance(module, NORMS + NOTHING):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def is_activation(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node applies an activation function."""
    return (
        isinstance(module_of(graph, node), ACTIVATIONS)
        or (node.op == "call_function" and node.target in ACTIVATION_FUNCTIONS)
        or (node.op == "call_method" and node.target in ("relu", "relu_", "sigmoid"))
    )


def is_sum(node: fx.Node) -> bool:
    """True where a node adds two features (a residual sum), not a feature and a parameter."""
    adds = node.target in SUMS if node.op == "call_function" else node.op == "call_method" and node.target == "add"
    return adds and len(node.all_input_nodes) == 2 and all(source.op != "get_attr" for source in node.all_input_nodes)


def is_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    """True where a node is a convolution or a linear layer."""
    return isinstance(module_of(graph, node), (*LAYERS, QuantizedLayer))


def quantized_outputs(graph: fx.GraphModule) -> list[fx.Node]:
    """The nodes whose outputs a deployment quantizes, in order.

    After an activation function; after a residual sum without one; after a layer that leads to neither. What
    a kernel fuses (convolution + sum + ReLU) is quantized once, at its end. The logits are not quantized.
    """
    nodes = []
    for node in graph.graph.nodes:
        fused_on = [user for user in node.users if is_activation(graph, user)]
        if is_layer(graph, node):
            fused_on += [user for user in node.users if is_sum(user)]
        elif not (is_activation(graph, node) or is_sum(node)):
            continue
        if len(fused_on) < len(node.users):
            nodes.append(node)
    return [node for node in nodes if node is not last_layer(graph)]


def last_layer(graph: fx.GraphModule) -> fx.Node:
    """The last convolution or linear layer, which gives the logits."""
    return [node for node in graph.graph.nodes if is_layer(graph, node)][-1]


def assign_units(graph: fx.GraphModule, blocks: Sequence[str]) -> dict[fx.Node, str]:
    """The unit of every node: 'stem', then one unit a block, then 'head'.

    `blocks` are module names, with wildcards ('layer1.*'). A node between two blocks joins the one before it.
    """
    units: dict[fx.Node, str] = {}
    current = STEM
    last_in_block = None
    for node in graph.graph.nodes:
        names = list(node.meta.get("nn_module_stack") or {}) + ([node.target] if node.op == "call_module" else [])
        block = next((n for n in names for b in blocks if fnmatchcase(n, b) and n.count(".") == b.count(".")), None)
        if block:
            current, last_in_block = block, node
        units[node] = current
    if last_in_block is None:
        raise InputError(f"no module of the backbone matches its blocks {', '.join(blocks)}.")
    after = False
    for node in graph.graph.nodes:
        if after:
            units[node] = HEAD
        after = after or node is last_in_block
    return units


def extract(graph: fx.GraphModule, nodes: Sequence[fx.Node], name: str) -> fx.GraphModule:
    """The sub-graph of `nodes` as a module with one input and one output.

    Raises InputError where more than one tensor enters or leaves, naming the unit.
    """
    inside = set(nodes)
    enters = list(dict.fromkeys(s for n in nodes for s in n.all_input_nodes if s not in inside))
    leaves = [n for n in nodes if any(user not in inside for user in n.users)]
    if len(enters) != 1 or len(leaves) != 1:
        raise InputError(
            f"unit {name!r} has {len(enters)} inputs ({', '.join(map(str, enters))}) and {len(leaves)} outputs "
            f"({', '.join(map(str, leaves))}); a unit has one of each. Choose other blocks for this backbone."
        )
    part = fx.Graph()
    copies = {enters[0]: part.placeholder("x")}
    for node in nodes:
        copies[node] = part.node_copy(node, lambda source: copies[source])
    part.output(copies[leaves[0]])
    return fx.GraphModule(graph, part, class_name="Unit")


def quantize_graph(
    graph: fx.GraphModule, units: dict[fx.Node, str], widths_w: Sequence[int], widths_a: Sequence[int], edge_bits: int
) -> None:
    """Insert activation quantizers and replace layers, in place; `units` learns of the new nodes.

    Stem and head keep `edge_bits` for their weights, and so does the activation that enters the last layer.
    """
    outputs = quantized_outputs(graph)
    source = last_layer(graph).args[0]
    while source not in outputs and source.all_input_nodes:
        source = source.all_input_nodes[0]  # through pooling and reshaping, back to what is quantized
    enters_last_layer = source
    for node in outputs:
        at_edge = node is enters_last_layer or units[node] == HEAD
        name = f"{node.name}_quantizer"
        graph.add_submodule(name, ActivationQuantizer(widths_a, edge_bits if at_edge else None))
        with graph.graph.inserting_after(node):
            quantizer = graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantizer, delete_user_cb=lambda user, q=quantizer: user is not q)
        units[quantizer] = units[node]
    for node in graph.graph.nodes:
        if is_layer(graph, node) and not isinstance(module_of(graph, node), QuantizedLayer):
            layer = module_of(graph, node)
            if getattr(layer, "padding_mode", "zeros") != "zeros":
                raise InputError(
                    f"layer {node.target!r} has padding_mode={layer.padding_mode!r}; only 'zeros' is known."
                )
            at_edge = units[node] in (STEM, HEAD)
            graph.set_submodule(node.target, QuantizedLayer(layer, widths_w, edge_bits if at_edge else None))
    graph.recompile()


def to_units(
    network: nn.Module,
    blocks: Sequence[str],
    widths_w: Sequence[int],
    widths_a: Sequence[int],
    edge_bits: int = 8,
) -> list[tuple[str, fx.GraphModule]]:
    """All five steps: the units of `network` in order, as (name, module), each with one input and one output."""
    graph = fold_norms(trace(network))
    units = assign_units(graph, blocks)
    quantize_graph(graph, units, widths_w, widths_a, edge_bits)
    members: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if node.op not in ("placeholder", "output"):
            members.setdefault(units[node], []).append(node)
    return [(name, extract(graph, nodes, name)) for name, nodes in members.items()]


def to_layers(graph: fx.GraphModule) -> list[tuple[str, fx.GraphModule]]:
    """Every layer of a unit with what directly follows it, activation function and quantizer, as (name, module).

    What follows a residual sum belongs to no layer.
    """
    parts = []
    for node in graph.graph.nodes:
        if is_layer(graph, node):
            nodes = [node]
            while len(nodes[-1].users) == 1 and _goes_with_layer(graph, follower := next(iter(nodes[-1].users))):
                nodes.append(follower)
            parts.append((node.target, extract(graph, nodes, node.target)))
    return parts


def _goes_with_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    return is_activation(graph, node) or isinstance(module_of(graph, node), ActivationQuantizer)
