"""Where quantizers stand in a network's graph, and what each of its layers becomes."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import fx, nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.network.layers import LAYERS, Layer
from ptmq.network.trace import input_of, is_layer, is_product, is_softmax, module_of, relu_of, sources_of
from ptmq.quantization.activation_quantizer import ActivationQuantizer

STEM, HEAD = "stem", "head"


@dataclass(frozen=True)
class QuantizationSpec:
    """What decides how a network is quantized, before anything is calibrated.

    blocks: names of its reconstruction blocks, with wildcards ('layer1.*') · widths: every width that it shall be able
    to take · edge_bits: width of the weights of stem and head, and of what enters the last layer ·
    quantize_softmax: of attention; else it stays in floating point · anchor: the width whose error decides the weights'
    grid where all widths share one (nested); 0: every width has a grid of its own · correction: what every layer is
    corrected by at every width, one of `ptmq.quantization.quantizer.KINDS`.
    """

    blocks: Sequence[str]
    widths: Sequence[BitWidth]
    edge_bits: int = 8
    quantize_softmax: bool = False
    anchor: int = 0
    correction: str = "none"

    def __post_init__(self) -> None:
        widths = tuple(sorted(BitWidth.parse(width) for width in self.widths))
        if not widths:
            raise InputError("a multi-bit model needs at least one width, such as W4A4.")
        object.__setattr__(self, "widths", widths)
        object.__setattr__(self, "blocks", tuple(self.blocks))

    @property
    def weight_bits(self) -> list[int]:
        """Of every width, lowest first."""
        return [width.weight for width in self.widths]

    @property
    def activation_bits(self) -> list[int]:
        """Of every width, lowest first."""
        return [width.activation for width in self.widths]


def quantized_outputs(graph: fx.GraphModule, softmax: bool) -> list[fx.Node]:
    """The nodes whose outputs are quantized, in order: what enters a layer, and both sides of an attention product.

    What enters a layer is quantized where it is computed, before pooling and reshaping, so that a residual sum gets it
    quantized, too; what a kernel fuses (convolution + sum + ReLU) is quantized once, at its end. Pixels have 8 bits by
    themselves, and the logits enter nothing. The output of a softmax stays in floating point unless `softmax`.
    """
    found: dict[fx.Node, None] = {}
    for node in graph.graph.nodes:
        if is_layer(graph, node):
            found |= dict.fromkeys(sources_of(graph, input_of(node)))
        elif is_product(graph, node):
            found |= {side: None for side in node.args[:2] if softmax or not is_softmax(graph, side)}
    return [node for node in graph.graph.nodes if node in found and node.op not in ("placeholder", "get_attr")]


def last_layer(graph: fx.GraphModule) -> fx.Node:
    """The last convolution or linear layer, which gives the logits."""
    return [node for node in graph.graph.nodes if is_layer(graph, node)][-1]


def quantize_graph(
    graph: fx.GraphModule,
    units: dict[fx.Node, str],
    spec: QuantizationSpec,
    to_layer: Callable[[Layer, int | None], nn.Module],
    to_quantizer: Callable[[int | None], nn.Module],
) -> None:
    """Insert activation quantizers and replace layers, in place; `units` learns of the new nodes.

    to_layer(layer, fixed), to_quantizer(fixed): what a layer becomes, and a new quantizer; `fixed` is the width
    of the edges at an edge, else None. The edges are the layers of stem and head and the activation that enters the
    last layer.
    """
    enters_last_layer = sources_of(graph, input_of(last_layer(graph)))
    for node in quantized_outputs(graph, spec.quantize_softmax):
        at_edge = node in enters_last_layer or units[node] == HEAD
        name = f"{node.name}_quantizer"
        graph.add_submodule(name, to_quantizer(spec.edge_bits if at_edge else None))
        with graph.graph.inserting_after(node):
            quantizer = graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantizer, delete_user_cb=partial(operator.is_not, quantizer))
        units[quantizer] = units[node]
    for node in graph.graph.nodes:
        layer = module_of(graph, node)
        if isinstance(layer, LAYERS):
            if getattr(layer, "padding_mode", "zeros") != "zeros":
                raise InputError(
                    f"layer {node.target!r} has padding_mode={layer.padding_mode!r}; only 'zeros' is known."
                )
            at_edge = units[node] in (STEM, HEAD)
            graph.set_submodule(node.target, to_layer(layer, spec.edge_bits if at_edge else None))
    graph.recompile()


def absorb_relus(graph: fx.GraphModule) -> None:
    """Leave ReLUs and ReLU6s that nothing but a quantizer reads to that quantizer: one pass over memory less.

    Not where another node reads what enters one, too: in place it would change that.
    """
    for node in list(graph.graph.nodes):
        quantizer = module_of(graph, node)
        if isinstance(quantizer, ActivationQuantizer) and (function := relu_of(graph, relu := node.args[0])):
            (source,) = relu.all_input_nodes
            if len(relu.users) == len(source.users) == 1:
                quantizer.relu, node.args = function, (source,)
                graph.graph.erase_node(relu)
    graph.recompile()
