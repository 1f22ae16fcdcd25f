"""Cutting a graph into units, each with one input and one output: the stem, the blocks, the head."""

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import Tensor, fx, nn

from ptmq.common.errors import InputError
from ptmq.network.graph.blocks import Block, Cutter, is_open
from ptmq.network.graph.coverage import rows_of
from ptmq.network.graph.deployable import give_bias_grids
from ptmq.network.graph.fold import fold_norms
from ptmq.network.layers import Layer, QuantizedLayer, frozen, weight_of
from ptmq.network.place import (
    HEAD,
    STEM,
    Edge,
    QuantizationSpec,
    absorb_relus,
    final_layers,
    first_layers,
    quantize_graph,
)
from ptmq.network.recording.prepare import at_inference, example_for, on_the_cpu, result_of, some_images, unwrapped
from ptmq.network.recording.record import Ref, record
from ptmq.network.trace import channel_axis, is_activation, is_layer, module_of, trace
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.quantization.quantizer import ChannelCorrection
from ptmq.quantization.step_size import holding_zero, own, signed
from ptmq.quantization.weight_quantizer import GridWeightQuantizer, NestedWeightQuantizer, RoundedWeightQuantizer

Units = dict[fx.Node, str]
CHECKED, TOLERANCE = 2, 1e-4  # images, and the share of the largest logit, that units and network may differ by


def assign_units(graph: fx.GraphModule, blocks: Sequence[str] | None) -> Units:
    """The unit of every node that computes with the images: a stem, one unit a block, a head.

    blocks: module names, with wildcards ('layer1.*'); a node between two blocks joins the one before it. None: they are
    found, see `ptmq.network.graph.blocks`. A block that is called twice is two units. A unit without a layer joins
    another. Raises InputError where there is no layer, or no such block.
    """
    nodes = [node for node in graph.graph.nodes if is_open(node)]
    layers = [is_layer(graph, node) for node in nodes]
    if not any(layers):
        raise InputError("the network has no convolution or linear layer: there is nothing to quantize.")
    units = _found(graph, nodes, layers) if blocks is None else _named(nodes, blocks)
    return _with_layers(units, {node for node, layer in zip(nodes, layers, strict=True) if layer})


def _named(nodes: Sequence[fx.Node], blocks: Sequence[str]) -> Units:
    """Units by the names of blocks."""
    units: Units = {}
    names: dict[int, str] = {}  # of the calls that are blocks
    current: str = STEM
    last_in_block = None
    for node in nodes:
        block = next((entry for entry in node.meta["inside"] for pattern in blocks if _fits(entry.name, pattern)), None)
        if block:
            current = names.setdefault(block.number, _unique(block.name, names.values()))
            last_in_block = node
        units[node] = current
    if last_in_block is None:
        raise InputError(f"no module of the backbone matches its blocks {', '.join(blocks)}.")
    for node in reversed(nodes):
        if node is last_in_block:
            break
        units[node] = HEAD
    return _without_collisions(units)


def _fits(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) and name.count(".") == pattern.count(".")


def _found(graph: fx.GraphModule, nodes: Sequence[fx.Node], layers: Sequence[bool]) -> Units:
    """Units where none are named."""
    cutter = Cutter(nodes, layers)
    found = cutter.units()
    first, final = first_layers(graph), final_layers(graph)

    def is_edge(block: Block, layers_there: set[fx.Node]) -> bool:
        own = {node for node in nodes[block.start : block.end + 1] if is_layer(graph, node)}
        return cutter.is_simple(block) or own <= layers_there

    names: list[str] = []
    for number, block in enumerate(found):
        if number == 0 and len(found) > 1 and is_edge(block, first):
            names.append(STEM)
        elif number and number == len(found) - 1 and is_edge(block, final):
            names.append(HEAD)
        else:
            names.append(_unique(block.name, [other for other in names if not isinstance(other, Edge)]))
    units: Units = {}
    for number, (block, name) in enumerate(zip(found, names, strict=True)):
        start = found[number - 1].end + 1 if number and name is HEAD else block.start
        for position in range(0 if not number else start, len(nodes)):  # up to where the next begins
            units[nodes[position]] = name
    return _without_collisions(units)


def _unique(name: str, taken: object) -> str:
    """The name, with a number where it is taken."""
    found, number = name, 1
    while found in list(taken):  # type: ignore[call-overload]
        number += 1
        found = f"{name}_{number}"
    return found


def _without_collisions(units: Units) -> Units:
    """Stem and head under other names where blocks have theirs."""
    blocks = {name for name in units.values() if not isinstance(name, Edge)}
    edges = {name: Edge(_unique(name, blocks)) for name in units.values() if isinstance(name, Edge)}
    return {node: edges[name] if isinstance(name, Edge) else name for node, name in units.items()}


def _with_layers(units: Units, layers: set[fx.Node]) -> Units:
    """Units with what has no layer in the one before it, or, at the front, in the one behind it."""
    order = list(dict.fromkeys(units.values()))
    with_layers = {units[node] for node in layers}
    into: dict[str, str] = {}
    for position, name in enumerate(order):
        before = [other for other in order[: position + 1] if other in with_layers]
        into[name] = before[-1] if before else next(other for other in order if other in with_layers)
    return {node: into[name] for node, name in units.items()}


def extract(graph: fx.GraphModule, nodes: Sequence[fx.Node], name: str) -> fx.GraphModule:
    """The sub-graph of `nodes` as a module with one input and one output.

    Raises InputError where more than one tensor enters or leaves, naming the unit.
    """
    inside = set(nodes)
    enters = list(dict.fromkeys(s for n in nodes for s in n.all_input_nodes if s not in inside and _enters(s)))
    leaves = [n for n in nodes if any(user not in inside for user in n.users)]
    if len(enters) != 1 or len(leaves) != 1:
        raise InputError(
            f"unit {name!r} has {len(enters)} inputs ({', '.join(map(str, enters))}) and {len(leaves)} outputs "
            f"({', '.join(map(str, leaves))}); a unit has one of each. Choose other blocks for this backbone."
        )
    (images,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    part = fx.Graph()
    copies = {enters[0]: part.placeholder("x")}
    copies.setdefault(images, copies[enters[0]])  # whose number and device are the input's

    def copied(source: fx.Node) -> fx.Node:
        if source not in copies:  # a constant, or the number of images
            copies[source] = part.node_copy(source, copied)
        return copies[source]

    for node in nodes:
        copies[node] = part.node_copy(node, copied)
    part.output(copies[leaves[0]])
    unit = fx.GraphModule(graph, part, class_name="Unit")
    unit.meta |= {"channel_axis": channel_axis(graph, leaves[0]), "ref": leaves[0].meta.get("ref")}
    unit.meta["per_image"] = enters[0].meta.get("per_image", True)
    return unit


def _enters(node: fx.Node) -> bool:
    return is_open(node) or node.op == "placeholder"


@on_the_cpu()
def to_units(
    network: nn.Module, spec: QuantizationSpec, example: Tensor | None = None
) -> list[tuple[str, fx.GraphModule]]:
    """All steps: the units of `network` in order, as (name, module), each with one input and one output.

    example: see `ptmq.network.trace.trace`. Each module's meta holds its `channel_axis` and its rows of the `coverage`.
    Raises InputError where weights are left out that the spec does not name, or the units are not the network.
    """
    network, example = unwrapped(network), example_for(network, example)
    graph = fold_norms(trace(network, example))
    units = assign_units(graph, spec.blocks)
    integer = spec.target != "none"
    of_weights, of_activations = (signed, holding_zero) if integer else (own, own)

    def to_layer(layer: Layer, fixed: int | None) -> QuantizedLayer:
        layer = frozen(layer)
        shape = weight_of(layer).shape
        quantizer: GridWeightQuantizer = (
            NestedWeightQuantizer(shape, spec.weight_bits, fixed, spec.anchor, integer, spec.ties)
            if spec.anchor
            else RoundedWeightQuantizer(shape, spec.weight_bits, fixed, of_weights)
        )
        correction = None if spec.correction == "none" else ChannelCorrection(shape[0], spec.widths)
        return QuantizedLayer(layer, quantizer, correction)

    def to_quantizer(fixed: int | None) -> ActivationQuantizer:
        return ActivationQuantizer(spec.activation_bits, fixed, of_activations)

    quantize_graph(graph, units, spec, to_layer, to_quantizer)
    rows = rows_of(graph, spec)
    absorb_relus(graph)
    if integer:
        give_bias_grids(graph)
    members: dict[str, list[fx.Node]] = {}
    for node in graph.graph.nodes:
        if is_open(node):
            members.setdefault(units[node], []).append(node)
    found = [(name, extract(graph, nodes, name)) for name, nodes in members.items()]
    for name, unit in found:
        if not unit.meta["per_image"]:
            raise InputError(f"unit {name!r} takes a tensor that does not have the images first. Choose other blocks.")
    found[0][1].meta["coverage"] = rows
    require_equal(network, found, example)
    return found


@on_the_cpu()
def require_equal(network: nn.Module, units: Sequence[tuple[str, fx.GraphModule]], example: Tensor) -> None:
    """Raise InputError where units, one after the other, do not give the network's logits; the first that differs.

    A network that makes much of rounding errors is taken where every unit for itself does what it should.
    """
    images = some_images(example.flip(0), CHECKED) * 0.75  # none that was recorded: what was taken for constant shows
    logits, x = result_of(at_inference(network)(images.clone())), images
    for _, unit in units:
        x = unit(x)
    if _equal(x, logits):
        return
    recording, x = record(at_inference(network), images, values=True), images
    for name, unit in units:
        x, ref, expected = unit(x), unit.meta.get("ref"), None
        if isinstance(ref, Ref):
            out = recording.calls[ref.call].out
            expected = out if ref.position is None else out[ref.position]
        elif unit is units[-1][1]:
            expected = logits
        if expected is not None and not _equal(x, expected):
            apart = float((x - expected).abs().max()) if x.shape == expected.shape else math.inf
            raise InputError(
                f"unit {name!r} does not compute what {type(network).__name__} computes there: up to {apart:.3g} "
                f"apart, where the largest value is {float(expected.abs().max()):.3g}. Something in it is not "
                "followed, such as a scripted function, a function of another library, or chance."
            )
        x = x if expected is None else expected  # the next is asked by itself


def _equal(x: Tensor, expected: Tensor) -> bool:
    if not expected.isfinite().all():  # a network of NaN: told where it is calibrated
        return True
    return x.shape == expected.shape and bool((x - expected).abs().max() <= TOLERANCE * expected.abs().max())


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
            parts.append((str(node.target), extract(graph, nodes, str(node.target))))
    return parts


def _goes_with_layer(graph: fx.GraphModule, node: fx.Node) -> bool:
    return is_activation(graph, node) or isinstance(module_of(graph, node), ActivationQuantizer)
