"""What of a network is quantized, and why the rest is not: every parameter is named."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from ptmq.common.bits import FP
from ptmq.common.errors import InputError
from ptmq.network.graph.fold import ChannelAffine
from ptmq.network.layers import LAYERS, QuantizedLayer
from ptmq.network.spec import QuantizationSpec
from ptmq.network.trace import NORMS, module_of

MULTIPLYING: tuple[Callable | str, ...] = (  # sums of products, so that their constants are weights
    *("matmul", "bmm", "__matmul__", "__rmatmul__", "mm", "addmm", "baddbmm", "inner", "tensordot"),
    *(torch.matmul, torch.bmm, torch.mm, torch.addmm, torch.baddbmm, torch.inner, torch.tensordot, torch.einsum),
    *(F.bilinear, F.embedding, torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu, F.linear, F.conv1d, F.conv2d),
    *(F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One layer, or what else has parameters.

    bits: every width that it can take; 32 alone where it stays in floating point · reason: why it keeps a width.
    """

    layer: str
    kind: str
    parameters: int
    bits: tuple[int, ...]
    reason: str = ""

    @property
    def is_quantized(self) -> bool:
        """Whether it takes anything but floating point."""
        return self.bits != (FP,)


class Coverage(list[Row]):
    """The rows of a model; as text, a table."""

    @property
    def share(self) -> float:
        """The share of the layers' weights that is quantized, 0..1."""
        weights = [row for row in self if row.is_quantized or row.reason.startswith((_LEFT_OUT, _KEPT))]
        return sum(r.parameters for r in weights if r.is_quantized) / max(sum(r.parameters for r in weights), 1)

    def __str__(self) -> str:
        head = ("layer", "kind", "parameters", "bits", "reason")
        lines = [head, *((r.layer, r.kind, f"{r.parameters:,}", told(r.bits), r.reason) for r in self)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        rows = ["  ".join(cell.rjust(w) if number == 2 else cell.ljust(w)
                          for number, (cell, w) in enumerate(zip(line, widths, strict=True))).rstrip()
                for line in lines]  # fmt: skip
        total = sum(row.parameters for row in self)
        quantized = sum(row.parameters for row in self if row.is_quantized)
        last = f"{self.share:.1%} of the weights of layers, {quantized:,} of {total:,} parameters, are quantized."
        return "\n".join([rows[0], "  ".join("-" * w for w in widths), *rows[1:], last])


_LEFT_OUT, _KEPT = "left in floating point", "kept in floating point"


def told(bits: tuple[int, ...]) -> str:
    """Widths in few characters: '3-8', '4, 8', 'FP'."""
    if bits == (FP,):
        return "FP"
    run = len(bits) > 2 and bits == tuple(range(bits[0], bits[-1] + 1))
    return f"{bits[0]}-{bits[-1]}" if run else ", ".join(map(str, bits))


def rows_of(graph: fx.GraphModule, spec: QuantizationSpec) -> Coverage:
    """The rows of a graph whose layers are quantized.

    Raises InputError where a weight is left out that `spec` does not name, or `spec` names what is not there.
    """
    parameters: dict[str, int] = graph.meta["parameters"]
    found = (row for node in graph.graph.nodes for row in _rows_of_node(graph, node, spec, parameters))
    rows = Coverage({(row.layer, row.kind): row for row in found}.values())  # a constant may be read in several forms
    rest = dict(parameters)
    for node in graph.graph.nodes:
        for name in [*_origins(node), *node.meta.get("folded", [])]:
            rest.pop(name, None)
    owners = {row.layer for row in rows}
    rows += _aggregated(graph, parameters)
    rows += [Row(name, "parameter", count, (FP,), "not used at inference") for name, count in rest.items()]
    spec.require_fits([*owners, *parameters])
    left_out = [row for row in rows if row.reason.startswith(_LEFT_OUT) and not spec.keeps(row.layer)]
    if spec.strict and left_out:
        raise InputError(
            f"{len(left_out)} weights would stay in floating point: "
            f"{', '.join(f'{row.layer} ({row.parameters:,} parameters, {_why(row)})' for row in left_out[:5])}"
            f"{', ...' if len(left_out) > 5 else ''}. Name them in keep_fp, or set strict=False."
        )
    return rows


def _why(row: Row) -> str:
    return row.reason.removeprefix(_LEFT_OUT).lstrip(": ")


def _rows_of_node(
    graph: fx.GraphModule, node: fx.Node, spec: QuantizationSpec, parameters: dict[str, int]
) -> Iterator[Row]:
    """The row of a layer, a norm or a constant; none of other nodes."""
    module, name = module_of(graph, node), str(node.target)
    if isinstance(module, QuantizedLayer):
        quantizer: Any = module.quantizer
        bits = tuple(getattr(quantizer, "widths", spec.weight_bits)) or (FP,)
        yield Row(name, module.kind, module.weight.numel(), bits, node.meta.get("fixed", ""))
    elif module is not None and isinstance(module, LAYERS):
        asked = "keep_fp" if spec.keeps(name) else "rules"
        yield Row(name, type(module).__name__, module.weight.numel(), (FP,), f"{_KEPT} by {asked}")  # type: ignore[operator]
    elif isinstance(module, ChannelAffine):
        yield Row(
            name, "BatchNorm", _count(node, parameters), (FP,), "follows no layer: a fixed scale and shift a channel"
        )
    elif isinstance(module, (*NORMS, nn.LayerNorm)):
        yield Row(name, type(module).__name__, _count(node, parameters), (FP,), "a norm")
    elif node.op == "get_attr":
        for origin in sorted(_origins(node)):
            if origin in parameters:
                yield Row(origin, "parameter", parameters[origin], (FP,), _use(node))


def _count(node: fx.Node, parameters: dict[str, int]) -> int:
    """How many parameters a norm has."""
    return sum(parameters.get(origin, 0) for origin in _origins(node))


def _use(node: fx.Node) -> str:
    """What is done with a constant."""
    functions = [user.target for user in node.users if isinstance(user, fx.Node)]
    names = sorted({function if isinstance(function, str) else getattr(function, "__name__", str(function))
                    for function in functions})  # fmt: skip
    if any(function in MULTIPLYING for function in functions):
        return f"{_LEFT_OUT}: a weight of {', '.join(names)}, which is no layer"
    return f"element by element ({', '.join(names)})"


def _aggregated(graph: fx.GraphModule, parameters: dict[str, int]) -> Iterator[Row]:
    """One row for all biases, one for all folded norms, one for what weights are computed from beside a weight."""
    biases = {name for node in graph.graph.nodes if isinstance(module_of(graph, node), (*LAYERS, QuantizedLayer))
              for name in node.meta.get("origins", {}).get("bias", ())}  # fmt: skip
    folded = {name for node in graph.graph.nodes for name in node.meta.get("folded", [])}
    factors = {name for node in graph.graph.nodes for name in sorted(
        node.meta.get("origins", {}).get("weight", ()), key=lambda name: parameters.get(name, 0)
    )[:-1] if isinstance(module_of(graph, node), (*LAYERS, QuantizedLayer))}  # fmt: skip
    for names, layer, kind, reason in (
        (biases, "(biases of layers)", "biases", "added to sums"),
        (folded, "(folded norms)", "norms", "folded into layers"),
        (factors, "(factors of weights)", "factors", "a weight is computed from them"),
    ):
        count = sum(parameters.get(name, 0) for name in names)
        if count:
            yield Row(layer, kind, count, (FP,), reason)


def _origins(node: fx.Node) -> set[str]:
    """The parameters that a node's weights or value come from."""
    return {name for names in node.meta.get("origins", {}).values() for name in names}
