"""Folding norms into the layers beside them, so that nothing is left to re-estimate when the width switches."""

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ptmq.network.layers import CONVOLUTIONS, TRANSPOSED
from ptmq.network.trace import NORMS, NOTHING, calls, input_of, module_of


class ChannelAffine(nn.Module):
    """A BatchNorm that follows no layer: a fixed scale and shift of every channel, (channels,) each."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: Any):
        super().__init__()
        scale, shift = _affine(norm)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, ...) -> the same."""
        broadcast = (-1, *[1] * (x.dim() - 2))
        return x * self.scale.view(broadcast) + self.shift.view(broadcast)


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Scale and shift of a BatchNorm at inference."""
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is None:
        return scale, -norm.running_mean * scale
    scale = scale * norm.weight.detach()
    return scale, norm.bias.detach() - norm.running_mean * scale


def fold_norms(graph: fx.GraphModule) -> fx.GraphModule:
    """Fold BatchNorm and LayerNorm, in place; drop no-op modules.

    BatchNorm goes into the convolution or linear layer before it; where there is none of its own, it stays as a fixed
    affine map. Either way nothing is left whose statistics would have to be re-estimated when the bit-width switches.
    The affine part of a LayerNorm goes into the linear layers behind it, where nothing else reads it.
    """
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), NOTHING):
            _replace(node, input_of(node))
    for node in list(graph.graph.nodes):
        if isinstance(module_of(graph, node), NORMS):
            fold_batch_norm(graph, node)
    for node in list(graph.graph.nodes):
        if calls(graph, node, nn.LayerNorm):
            fold_layer_norm(graph, node)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _replace(node: fx.Node, by: fx.Node) -> None:
    """Let `by` stand for a node that is taken out, with its value."""
    by.meta["ref"] = node.meta.get("ref")
    node.replace_all_uses_with(by)
    node.graph.erase_node(node)


def fold_batch_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    """Move a BatchNorm at inference into the layer before it, or make it an affine map."""
    norm: Any = module_of(graph, node)
    source = _normalised_layer(graph, node)
    if source is None:
        graph.set_submodule(str(node.target), ChannelAffine(norm))
        return
    layer: Any = module_of(graph, source)
    statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
    if isinstance(layer, nn.Linear):
        weight = norm.weight if norm.weight is not None else torch.ones_like(norm.running_mean)
        bias = norm.bias if norm.bias is not None else torch.zeros_like(norm.running_mean)
        fused = fuse_linear_bn_weights(layer.weight, layer.bias, *statistics[:3], weight, bias)
    else:
        fused = fuse_conv_bn_weights(layer.weight, layer.bias, *statistics, transpose=type(layer) in TRANSPOSED)
    layer.weight, layer.bias = fused
    source.meta["folded"] = [*source.meta.get("folded", []), *_origins(node)]
    _replace(node, input_of(node))


def _normalised_layer(graph: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    """The layer whose output channels, and nothing else, a BatchNorm scales; None where there is none."""
    source, shape = input_of(node), node.meta["shape"]
    while source.target in ("flatten", "reshape", "view") and source.meta["shape"][-1] == shape[1] and len(shape) == 2:
        if len(source.users) > 1:  # tokens put beside images: (n, tokens, channels) -> (n * tokens, channels)
            return None
        source = input_of(source)
    layer = module_of(graph, source)
    if len(source.users) > 1:
        return None
    if isinstance(layer, nn.Linear):
        return source if len(shape) == 2 and source.meta["shape"][-1] == shape[1] else None
    if type(layer) in TRANSPOSED:
        return source if layer.groups == 1 else None  # type: ignore[union-attr]
    return source if type(layer) in CONVOLUTIONS else None


def fold_layer_norm(graph: fx.GraphModule, node: fx.Node) -> None:
    """Move scale and shift of a LayerNorm over the last dimension into the linear layers behind it, if all are that."""
    norm: Any = module_of(graph, node)
    readers = readers_of(node)
    layers: list[Any] = [module_of(graph, reader) for reader in readers]
    if norm.weight.dim() != 1 or not all(isinstance(layer, nn.Linear) for layer in layers):
        return
    for reader, layer in zip(readers, layers, strict=True):
        if norm.bias is not None:
            shift = layer.weight.data @ norm.bias.data
            layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias.data + shift)
        layer.weight = nn.Parameter(layer.weight.data * norm.weight.data)
        reader.meta["folded"] = [*reader.meta.get("folded", []), *_origins(node)]
    with graph.graph.inserting_after(node):
        plain = graph.graph.call_function(F.layer_norm, (node.args[0], tuple(norm.weight.shape)), {"eps": norm.eps})
    plain.meta = {**node.meta, "origins": {}}
    _replace(node, plain)
    plain.meta["ref"] = None  # its scale and shift are elsewhere


def readers_of(node: fx.Node) -> list[fx.Node]:
    """The nodes that compute with a (batch, tokens, channels) feature, or with some of its tokens or their mean."""
    readers = []
    for user in node.users:
        readers += readers_of(user) if _keeps_channels(user) else [user]
    return readers


def _keeps_channels(node: fx.Node) -> bool:
    """Whether a node takes some of the tokens, or their mean, or all in another order, with all their channels."""
    source = node.all_input_nodes[0].meta.get("shape", ())
    if node.target == "transpose":
        return all(isinstance(dim, int) and dim % len(source) != len(source) - 1 for dim in node.args[1:])
    if node.target == "mean":
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        return isinstance(dims, list | tuple) and all(dim % len(source) != len(source) - 1 for dim in dims)
    if node.target is operator.getitem:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        plain = all(isinstance(i, int | slice) for i in index)
        return plain and (len(index) < len(source) or index[-1] == slice(None))
    return False


def _origins(node: fx.Node) -> list[str]:
    """The parameters that a norm has."""
    return sorted(name for names in node.meta["origins"].values() for name in names)
