"""Cutting a graph into units, each with one input and one output: the stem, the blocks, the head."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import fx, nn

from ptmq.common.errors import InputError
from ptmq.network.fold import fold_norms
from ptmq.network.layers import Layer, QuantizedLayer, frozen
from ptmq.network.place import HEAD, STEM, QuantizationSpec, absorb_relus, quantize_graph
from ptmq.network.trace import is_activation, is_layer, module_of, trace
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.quantization.quantizer import ChannelCorrection
from ptmq.quantization.weight_quantizer import GridWeightQuantizer, NestedWeightQuantizer, RoundedWeightQuantizer


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


def to_units(network: nn.Module, spec: QuantizationSpec) -> list[tuple[str, fx.GraphModule]]:
    """All steps: the units of `network` in order, as (name, module), each with one input and one output."""
    graph = fold_norms(trace(network))
    units = assign_units(graph, spec.blocks)

    def to_layer(layer: Layer, fixed: int | None) -> QuantizedLayer:
        quantizer: GridWeightQuantizer = (
            NestedWeightQuantizer(layer.weight.shape, spec.weight_bits, fixed, spec.anchor)
            if spec.anchor
            else RoundedWeightQuantizer(layer.weight.shape, spec.weight_bits, fixed)
        )
        correction = None if spec.correction == "none" else ChannelCorrection(len(layer.weight), spec.widths)
        return QuantizedLayer(frozen(layer), quantizer, correction)

    quantize_graph(graph, units, spec, to_layer, lambda fixed: ActivationQuantizer(spec.activation_bits, fixed))
    absorb_relus(graph)
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
