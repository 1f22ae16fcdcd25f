"""From a network to a chain of quantized units, by rewriting its torch.fx graph.

trace -> fold norms -> place activation quantizers -> replace layers -> absorb ReLUs -> cut into units.
No backbone is written twice: whatever torch.fx can trace is quantized by these six steps.
"""

import copy
import operator
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from inspect import Parameter, signature
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ptmq.common.errors import InputError
from ptmq.network.layers import ActivationQuantizer, QuantizedLayer

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
NOTHING = (nn.Identity, nn.Dropout)  # do nothing at inference
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
    for node in list(graph.graph.nodes):  # assertions about sizes, which the images were checked for
        if node.op == "call_function" and node.target is torch._assert:
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def module_of(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls, None for other nodes."""
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def calls(graph: fx.GraphModule, node: fx.Node, modules=(), functions=(), methods=()) -> bool:
    """True where a node calls one of the modules, of the functions or of a tensor's methods."""
    if node.op == "call_module":
        return isinstance(module_of(graph, node), modules)
    return node.target in {"call_function": functions, "call_method": methods}.get(node.op, ())


def fold_norms(graph: fx.GraphModule) -> fx.GraphModule:
    """Fold BatchNorm and LayerNorm, in place; drop no-op modules.

    BatchNorm goes into the convolution or linear layer before it, so nothing is left whose statistics would have to be
    re-estimated when the bit-width switches: InputError where there is no such layer. The affine part of a LayerNorm
    goes into the linear layers behind it, where nothing else reads it.
    """
    for node in list(graph.graph.nodes):
        if calls(graph, node, NORMS, [F.batch_norm]):
            fold_batch_norm(graph, node)
        if calls(graph, node, NORMS + NOTHING, [F.batch_norm]):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
    for node in list(graph.graph.nodes):
        if calls(graph, node, nn.LayerNorm, [F.layer_norm]):
            fold_layer_norm(graph, node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def fold_batch_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    """Move a BatchNorm at inference into the convolution or linear layer before it."""
    source = node.args[0]
    layer = module_of(graph, source)
    if not isinstance(layer, LAYERS) or len(source.users) > 1:
        raise InputError(
            f"BatchNorm {str(node)!r} does not directly follow a convolution or linear layer "
            "of its own, so it cannot be folded. Use a backbone in the layer-norm-activation order."
        )
    fuse = fuse_conv_bn_weights if isinstance(layer, nn.Conv2d) else fuse_linear_bn_weights
    norm, layer = norm_of(graph, node), copy.deepcopy(layer)
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    graph.set_submodule(source.target, layer)


def fold_layer_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    """Move scale and shift of a LayerNorm over the last dimension into the linear layers behind it, if all are that."""
    norm, readers = norm_of(graph, node), readers_of(node)
    linear = all(isinstance(module_of(graph, reader), nn.Linear) for reader in readers)
    if norm.weight is None or norm.weight.dim() != 1 or not linear:
        return
    for reader in readers:
        layer = copy.deepcopy(module_of(graph, reader))
        if norm.bias is not None:
            shift = layer.weight.data @ norm.bias.data
            layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias.data + shift)
        layer.weight = nn.Parameter(layer.weight.data * norm.weight.data)
        graph.set_submodule(reader.target, layer)
    with graph.graph.inserting_after(node):
        plain = graph.graph.call_function(F.layer_norm, (node.args[0], tuple(norm.weight.shape)), {"eps": norm.eps})
    plain.meta = dict(node.meta)
    node.replace_all_uses_with(plain)
    graph.graph.erase_node(node)


def norm_of(graph: fx.GraphModule, node: fx.Node) -> SimpleNamespace | nn.Module:
    """Parameters and statistics of a norm, whether the graph calls its module or its function."""
    if node.op == "call_module":
        return module_of(graph, node)
    given = signature(node.target).bind(*node.args, **node.kwargs)
    given.apply_defaults()
    read = {
        name: operator.attrgetter(value.target)(graph)
        if isinstance(value, fx.Node) and value.op == "get_attr"
        else value
        for name, value in given.arguments.items()
    }
    return SimpleNamespace(**read)


def readers_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that compute with a (batch, tokens, channels) feature, or with some of its tokens or their mean."""
    readers = []
    for user in node.users:
        if user.target in ("mean", operator.getitem):
            readers += readers_of(user)
        elif not (user.target is getattr or user.target == "size"):  # its size is not its values
            readers.append(user)
    return readers


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
    first = node.args[0]
    parts = first if isinstance(first, list | tuple) else [first]
    return [source for part in parts for source in sources_of(graph, part)]


def quantized_outputs(graph: fx.GraphModule, softmax: bool) -> list[fx.Node]:
    """The nodes whose outputs are quantized, in order: what enters a layer, and both sides of an attention product.

    What enters a layer is quantized where it is computed, before pooling and reshaping, so that a residual sum gets it
    quantized, too; what a kernel fuses (convolution + sum + ReLU) is quantized once, at its end. Pixels have 8 bits by
    themselves, and the logits enter nothing. The output of a softmax stays in floating point unless `softmax`.
    """
    found = {}
    for node in graph.graph.nodes:
        if is_layer(graph, node):
            found |= dict.fromkeys(sources_of(graph, node.args[0]))
        elif is_product(graph, node):
            found |= {side: None for side in node.args[:2] if softmax or not is_softmax(graph, side)}
    return [node for node in graph.graph.nodes if node in found and node.op not in ("placeholder", "get_attr")]


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
    graph: fx.GraphModule,
    units: dict[fx.Node, str],
    to_layer: Callable[[nn.Module, bool], nn.Module],
    to_quantizer: Callable[[bool], nn.Module],
    softmax: bool = False,
) -> None:
    """Insert activation quantizers and replace layers, in place; `units` learns of the new nodes.

    to_layer(layer, at_edge), to_quantizer(at_edge): what a layer becomes, and a new quantizer. The edges are the
    layers of stem and head and the activation that enters the last layer.
    """
    enters_last_layer = sources_of(graph, last_layer(graph).args[0])
    for node in quantized_outputs(graph, softmax):
        at_edge = node in enters_last_layer or units[node] == HEAD
        name = f"{node.name}_quantizer"
        graph.add_submodule(name, to_quantizer(at_edge))
        with graph.graph.inserting_after(node):
            quantizer = graph.graph.call_module(name, (node,))
        node.replace_all_uses_with(quantizer, delete_user_cb=lambda user, q=quantizer: user is not q)
        units[quantizer] = units[node]
    for node in graph.graph.nodes:
        layer = module_of(graph, node)
        if isinstance(layer, LAYERS):
            if getattr(layer, "padding_mode", "zeros") != "zeros":
                raise InputError(
                    f"layer {node.target!r} has padding_mode={layer.padding_mode!r}; only 'zeros' is known."
                )
            at_edge = units[node] in (STEM, HEAD)
            graph.set_submodule(node.target, to_layer(layer, at_edge))
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


def to_units(
    network: nn.Module,
    blocks: Sequence[str],
    widths_w: Sequence[int],
    widths_a: Sequence[int],
    edge_bits: int = 8,
    softmax: bool = False,
) -> list[tuple[str, fx.GraphModule]]:
    """All six steps: the units of `network` in order, as (name, module), each with one input and one output."""
    graph = fold_norms(trace(network))
    units = assign_units(graph, blocks)
    quantize_graph(
        graph,
        units,
        lambda layer, at_edge: QuantizedLayer(layer, widths_w, edge_bits if at_edge else None),
        lambda at_edge: ActivationQuantizer(widths_a, edge_bits if at_edge else None),
        softmax,
    )
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
