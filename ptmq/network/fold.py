"""Folding norms into the layers beside them, so that nothing is left to re-estimate when the width switches."""

import copy
import operator

import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ptmq.common.errors import InputError
from ptmq.network.layers import LAYERS
from ptmq.network.trace import NORMS, NOTHING, calls, input_of, module_of, norm_of


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
    source = input_of(node)
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
    graph.set_submodule(str(source.target), layer)


def fold_layer_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    """Move scale and shift of a LayerNorm over the last dimension into the linear layers behind it, if all are that."""
    norm, readers = norm_of(graph, node), readers_of(node)
    linear = [layer for reader in readers if isinstance(layer := module_of(graph, reader), nn.Linear)]
    if norm.weight is None or norm.weight.dim() != 1 or len(linear) < len(readers):
        return
    for reader, layer in zip(readers, map(copy.deepcopy, linear), strict=True):
        if norm.bias is not None:
            shift = layer.weight.data @ norm.bias.data
            layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias.data + shift)
        layer.weight = nn.Parameter(layer.weight.data * norm.weight.data)
        graph.set_submodule(str(reader.target), layer)
    with graph.graph.inserting_after(node):
        plain = graph.graph.call_function(F.layer_norm, (node.args[0], tuple(norm.weight.shape)), {"eps": norm.eps})
    plain.meta = dict(node.meta)
    node.replace_all_uses_with(plain)
    graph.graph.erase_node(node)


def readers_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that compute with a (batch, tokens, channels) feature, or with some of its tokens or their mean."""
    readers = []
    for user in node.users:
        if user.target in ("mean", operator.getitem):
            readers += readers_of(user)
        elif not (user.target is getattr or user.target == "size"):  # its size is not its values
            readers.append(user)
    return readers
