"""Where quantizers stand in a network's graph, and what each of its layers becomes."""

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from torch import fx, nn

from ptmq.common.bits import FP
from ptmq.common.errors import InputError
from ptmq.network.graph.blocks import is_open
from ptmq.network.graph.deployable import deployable_outputs, origin
from ptmq.network.layers import LAYERS, Layer
from ptmq.network.spec import QuantizationSpec, Rule
from ptmq.network.trace import input_of, is_layer, is_softmax, module_of, operands, relu_of, sources_of
from ptmq.quantization.activation_quantizer import ActivationQuantizer


class Edge(str):
    """The name of a unit that is no block: what lies before the first block, or behind the last."""

    __slots__ = ()


STEM, HEAD = Edge("stem"), Edge("head")


def quantized_layers(graph: fx.GraphModule, spec: QuantizationSpec) -> list[fx.Node]:
    """The layers that do not stay in floating point, in order."""
    layers = [node for node in graph.graph.nodes if is_layer(graph, node)]
    return [node for node in layers if (spec.rule(str(node.target)) or Rule()).weight != FP]


def quantized_outputs(graph: fx.GraphModule, layers: Iterable[fx.Node], softmax: bool) -> list[fx.Node]:
    """The nodes whose outputs are quantized, in order: what enters a layer, and both sides of an attention product.

    What enters a layer is quantized where it is computed, before pooling and reshaping, so that a residual sum gets it
    quantized, too; what a kernel fuses (convolution + sum + ReLU) is quantized once, at its end. Pixels have 8 bits by
    themselves, and the logits enter nothing. The output of a softmax stays in floating point unless `softmax`.
    """
    found: dict[fx.Node, None] = {}
    for node in layers:
        found |= dict.fromkeys(sources_of(graph, input_of(node)))
    for node in graph.graph.nodes:
        found |= {side: None for side in operands(graph, node) if softmax or not is_softmax(graph, side)}
    return [node for node in graph.graph.nodes if node in found and node.op not in ("placeholder", "get_attr")]


def first_layers(graph: fx.GraphModule) -> set[fx.Node]:
    """The layers that read pixels, and nothing that another layer made of them."""
    sees: set[fx.Node] = set()  # what depends on the pixels
    behind: set[fx.Node] = set()  # and on a layer
    for node in graph.graph.nodes:
        sources = [source for source in node.all_input_nodes if not source.meta.get("of_images")]
        if node.op == "placeholder" or any(source in sees for source in sources):
            sees.add(node)
        if any(source in behind or is_layer(graph, source) for source in sources):
            behind.add(node)
    return {node for node in sees - behind if is_layer(graph, node)}


def final_layers(graph: fx.GraphModule) -> set[fx.Node]:
    """The layers of which no other layer reads anything: they give the logits."""
    before: set[fx.Node] = set()
    for node in reversed(graph.graph.nodes):
        if any(user in before or is_layer(graph, user) for user in node.users):
            before.add(node)
    return {node for node in graph.graph.nodes if is_layer(graph, node)} - before


def edge_layers(graph: fx.GraphModule, units: Mapping[fx.Node, str], edges: str) -> tuple[set[fx.Node], set[fx.Node]]:
    """The layers at the two ends: the first and the last (or several side by side), or all of stem and head."""
    first, last = first_layers(graph), final_layers(graph)
    if edges == "layers":
        return first, last
    layers = [node for node in graph.graph.nodes if is_layer(graph, node) and isinstance(units[node], Edge)]
    ends = [{units[node] for node in at_end} for at_end in (first, last)]
    return {n for n in layers if units[n] in ends[0]}, {n for n in layers if units[n] in ends[1]}


def quantize_graph(
    graph: fx.GraphModule,
    units: dict[fx.Node, str],
    spec: QuantizationSpec,
    to_layer: Callable[[Layer, int | None], nn.Module],
    to_quantizer: Callable[[int | None], nn.Module],
) -> None:
    """Insert activation quantizers and replace layers, in place; `units` learns of the new nodes.

    to_layer(layer, fixed), to_quantizer(fixed): what a layer becomes, and a new quantizer; `fixed` is the width
    of the edges at an edge, or that of a rule, else None. The edges are the first and the last layer, or stem and head,
    and the activation that enters the last layer.
    """
    layers = quantized_layers(graph, spec)
    if not layers:
        raise InputError("keep_fp and rules leave every layer in floating point: there is nothing to quantize.")
    first, last = edge_layers(graph, units, spec.edges)
    fixed = {node: (spec.rule(str(node.target)) or Rule()).weight for node in layers}
    fixed |= {node: spec.edge_bits for node in layers if node in first | last and fixed[node] is None}
    for node, bits in _places(graph, units, spec, layers).items():
        name = f"{node.name}_quantizer"
        graph.add_submodule(name, to_quantizer(bits))
        readers = {user for user in node.users if user.op == "output" or is_open(user)}
        with graph.graph.inserting_after(node):
            quantizer = graph.graph.call_module(name, (node,))
        quantizer.meta = {key: node.meta[key] for key in ("inside", "shape", "per_image", "ref") if key in node.meta}
        node.replace_all_uses_with(quantizer, delete_user_cb=readers.__contains__)
        units[quantizer] = units[node] if node in units else next(iter(units.values()))  # of the images: the first
    for node in layers:
        layer = module_of(graph, node)
        assert isinstance(layer, LAYERS)
        node.meta["fixed"] = "rules" if spec.rule(str(node.target)) else _end(node, first, last)
        graph.set_submodule(str(node.target), to_layer(cast(Layer, layer), fixed[node]))
    graph.recompile()


def _end(node: fx.Node, first: set[fx.Node], last: set[fx.Node]) -> str:
    """At which end of the network a layer is, in words."""
    return "first layer" if node in first else "last layer" if node in last else ""


def _places(
    graph: fx.GraphModule, units: Mapping[fx.Node, str], spec: QuantizationSpec, layers: Iterable[fx.Node]
) -> dict[fx.Node, int | None]:
    """The nodes whose outputs are quantized, in order, each with the width that it keeps."""
    fixed = _fixed_activations(graph, units, spec, layers)
    if spec.target == "none":
        return {node: fixed.get(node) for node in quantized_outputs(graph, layers, spec.quantize_softmax)}
    return deployable_outputs(graph, layers, fixed, spec.quantize_softmax)


def _fixed_activations(
    graph: fx.GraphModule, units: Mapping[fx.Node, str], spec: QuantizationSpec, layers: Iterable[fx.Node]
) -> dict[fx.Node, int]:
    """Activations that keep a width: what enters the last layer, and what a rule says; the higher of two."""
    fixed: dict[fx.Node, int] = {}
    last = edge_layers(graph, units, "layers")[1]
    for node in layers:
        rule = spec.rule(str(node.target)) or Rule()
        bits = spec.edge_bits if node in last and rule.activation is None else rule.activation
        entering = input_of(node)
        sources = sources_of(graph, entering) if spec.target == "none" else [origin(graph, entering)]
        for source in sources if bits else ():
            fixed[source] = max(bits or 0, fixed.get(source, 0))
    if spec.edges == "units":
        heads = {units[node] for node in last if isinstance(units[node], Edge)}
        fixed |= {node: spec.edge_bits for node, name in units.items() if name in heads and node not in fixed}
    return fixed


def absorb_relus(graph: fx.GraphModule) -> None:
    """Leave ReLUs and ReLU6s that nothing but a quantizer reads to that quantizer: one pass over memory less.

    Not where another node reads what enters one, too: in place it would change that.
    """
    for node in list(graph.graph.nodes):
        quantizer = module_of(graph, node)
        if isinstance(quantizer, ActivationQuantizer) and (function := relu_of(graph, relu := input_of(node))):
            (source,) = relu.all_input_nodes
            if len(relu.users) == len(source.users) == 1:
                quantizer.relu, node.args = function, (source,)
                graph.graph.erase_node(relu)
    graph.recompile()
