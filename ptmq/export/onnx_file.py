"""Writing a calibrated model as one ONNX file: at one width, or at all of them, chosen by an input."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError, one_of
from ptmq.export.skeleton import IMAGES, LOGITS, OPSET, skeleton
from ptmq.network.layers import GridLayer, QuantizedLayer
from ptmq.network.model import MultiBitModel, Switchable

BITS, KEY = "bits", "ptmq"  # the input that selects a width; what the file's metadata begin with
IR = 10
Normalization = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Exported:
    """What was written.

    bytes: of the file · widths: what `bits` selects, by its values; of a file of one width, that alone · integer: how
    many layers and products integer kernels compute · floats: what stays in floating point, (layer, why).
    """

    path: Path
    bytes: int
    widths: dict[int, str]
    integer: int
    floats: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        total = self.integer + len(self.floats)
        lines = [
            f"{self.path}: {self.bytes:,} bytes, {', '.join(self.widths.values())}",
            f"{self.integer} of {total} layers and products run as integers",
            *(f"  {layer} stays in floating point: {why}" for layer, why in self.floats),
        ]
        return "\n".join(lines)


def export_onnx(
    model: Switchable,
    path: Path | str,
    width: str | BitWidth | None = None,
    *,
    normalization: Normalization | None = None,
) -> Exported:
    """Write a calibrated model as an ONNX file that runs as integers.

    width: such as 'W4A4'; None for all of the model's widths in one file, with an input `bits` beside `images`: a
    scalar int64 that selects the width of this call. Its values are those of `keys_of`: the weight bits, or where two
    widths share those the digits of both; the file's metadata list them · normalization: (mean, std), one number a
    channel, in 0..1, of what the network was trained with: images are then uint8, (batch, channels, height, width),
    else float32, prepared as the network wants them. What runs as integers was calibrated with target='onnx'; the rest
    is listed in what is returned. Raises InputError for what cannot be exported.
    """
    if find_spec("onnx") is None or find_spec("onnxscript") is None:
        raise InputError("writing ONNX needs onnx and onnxscript. Install them: pip install 'ptmq-suite[onnx]'.")
    if not isinstance(model, MultiBitModel):
        raise InputError(
            f"a {type(model).__name__} cannot be exported: its widths are not grids of one network. Take a model of "
            "ptmq.calibrate or ptmq.convert."
        )
    chosen = (_chosen(model, width),) if width is not None else model.widths
    path = Path(path)
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    proto, integer, floats = _proto(model, chosen, width is None, normalization)
    with _told(path):
        path.write_bytes(proto.SerializeToString())
    return Exported(path, path.stat().st_size, keys_of(chosen), integer, floats)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A sentence where the file cannot be written."""
    try:
        yield
    except OSError as error:
        raise InputError(f"file {str(path)!r} cannot be written: {error.strerror or error}.") from None


def keys_of(widths: Sequence[BitWidth]) -> dict[int, str]:
    """The values of the input `bits`, and what they select: weight bits where these tell the widths apart.

    Else the digits of both, two for the activation bits where one of them has two.

    >>> keys_of([BitWidth(3, 3), BitWidth(4, 4)])
    {3: 'W3A3', 4: 'W4A4'}
    >>> keys_of([BitWidth(4, 6), BitWidth(4, 8)])
    {46: 'W4A6', 48: 'W4A8'}
    >>> keys_of([BitWidth(4, 4), BitWidth(4, 32)])
    {404: 'W4A4', 432: 'W4A32'}
    """
    unique = len({width.weight for width in widths}) == len(widths)
    place = 10 if all(width.activation < 10 for width in widths) else 100
    return {width.weight if unique else place * width.weight + width.activation: str(width) for width in widths}


def _chosen(model: MultiBitModel, width: str | BitWidth) -> BitWidth:
    chosen = BitWidth.parse(width)
    one_of("width", str(chosen), [str(known) for known in model.widths])
    return chosen


def _proto(
    model: MultiBitModel, widths: Sequence[BitWidth], selected: bool, normalization: Normalization | None
) -> tuple[Any, int, tuple[tuple[str, str], ...]]:
    """The file's content, how many layers are integer, and what is not."""
    from onnx import TensorProto, helper

    from ptmq.export.frozen import frozen
    from ptmq.export.graph.branch import Branch
    from ptmq.export.graph.nodes import Constants, Nodes

    name = (model.description or {}).get("network", "the network")
    constants = Constants()
    outer = Nodes(constants, "V")
    images = normalized(outer, IMAGES, normalization, model.image_shape)
    graph = skeleton(model, name).graph
    modules = [found for unit in model.units for found in unit.graph.named_modules()]
    layers: dict[str, GridLayer] = {key: module for key, module in modules if isinstance(module, QuantizedLayer)}
    integer: list[int] = []
    floats: dict[tuple[str, str], None] = {}
    written = []
    for number, width in enumerate(widths):
        nodes = Nodes(constants, f"{chr(97 + number)}") if selected else outer
        branch = Branch(nodes, frozen(model, width), layers, selected, model.spec.target)
        logits = branch.write(graph, images)
        written.append((nodes, logits))
        integer.append(branch.integer)
        floats |= {(part.layer, part.why): None for part in branch.floats}
    batch = graph.input[0].type.tensor_type.shape
    kind = TensorProto.FLOAT if normalization is None else TensorProto.UINT8
    inputs = [helper.make_tensor_value_info(IMAGES, kind, _dims(batch))]
    classes = _dims(graph.output[0].type.tensor_type.shape)
    initializers = constants.tensors
    if selected:
        inputs.append(helper.make_tensor_value_info(BITS, TensorProto.INT64, []))
        initializers = switch(outer, dict(zip(keys_of(widths), written, strict=True)), classes)
    else:
        named(outer, written[0][1])
    output = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, classes)
    main = helper.make_graph(outer.nodes, "ptmq", inputs, [output], initializers)
    proto = helper.make_model(main, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="ptmq")
    described = {"widths": keys_of(widths), "float": [list(row) for row in floats], "network": name}
    helper.set_model_props(proto, {f"{KEY}.{key}": json.dumps(value) for key, value in described.items()})
    return proto, min(integer), tuple(floats)


def _dims(shape: Any) -> list[Any]:
    return [dim.dim_param or dim.dim_value for dim in shape.dim]


def normalized(nodes: Any, images: str, normalization: Normalization | None, shape: Sequence[int]) -> str:
    """Bytes as the network wants them, in the order of operations in which the suite reads images."""
    from onnx import TensorProto

    if normalization is None:
        return images
    values = [np.asarray(part, dtype=np.float32) for part in normalization]
    if len(shape) != 3 or any(part.shape != (shape[0],) for part in values) or not (values[1] > 0).all():
        raise InputError(
            f"normalization must be (mean, std), {shape[0]} numbers each, one a channel, std above 0. "
            f"Got {normalization!r}."
        )
    mean, std = (part.reshape(-1, 1, 1) for part in values)
    scaled = nodes("Div", nodes("Cast", images, to=TensorProto.FLOAT), np.float32(255))
    return nodes("Div", nodes("Sub", scaled, mean), std)


def switch(outer: Any, branches: Mapping[int, tuple[Any, str]], classes: Sequence[Any]) -> list[Any]:
    """A tree of Ifs on `bits`, whose leaves are branches; it gives the logits. Another value than a key is an error.

    A Gather fails there: its name is the sentence that onnxruntime tells. A tree, as every If takes time in a call.
    branches: the nodes, and the name of what they give, by key. Returns the constants that lie in no branch.
    """
    from onnx import TensorProto, helper

    keys = sorted(branches)
    written = [branches[key] for key in keys]
    hit = outer("Cast", outer("Equal", BITS, np.array(keys, dtype=np.int64)), to=TensorProto.INT64)
    unknown = outer("Sub", np.int64(1), outer("ReduceSum", hit, keepdims=0))  # 0, or 1 for no key
    sentence = f"bits must be one of {', '.join(map(str, branches))}"
    nothing = outer("Gather", np.zeros(1, dtype=np.int64), unknown, name=sentence)
    chosen = outer("Add", BITS, nothing)
    below = {key: outer("Less", chosen, np.int64(key)) for key in keys[1:]}
    if len(keys) == 1:
        outer.nodes += written[0][0].nodes
        named(outer, written[0][1])
        return outer.constants.tensors
    shared, own = outer.constants.placed([outer.nodes, *(nodes.nodes for nodes, _ in written)])

    def chooses(first: int, end: int) -> Any:
        """The If that chooses among some of the branches."""
        middle = (first + end) // 2
        given = LOGITS if end - first == len(keys) else f"L{first}_{end}"
        halves = {"then_branch": graph(first, middle), "else_branch": graph(middle, end)}
        return helper.make_node("If", [below[keys[middle]]], [given], **halves)

    def graph(first: int, end: int) -> Any:
        """A branch, or what chooses among some."""
        if end - first == 1:
            nodes, given, constants = written[first][0].nodes, written[first][1], own[1 + first]
        else:
            node = chooses(first, end)
            nodes, given, constants = [node], node.output[0], []
        value = helper.make_tensor_value_info(given, TensorProto.FLOAT, list(classes))
        return helper.make_graph(nodes, ", ".join(map(str, keys[first:end])), [], [value], constants)

    outer.nodes.append(chooses(0, len(keys)))
    return [*shared, *own[0]]


def named(nodes: Any, logits: str) -> None:
    """Give the logits their name in the file: the last node puts them out."""
    if nodes.nodes[-1].output[0] != logits:
        nodes("Identity", logits)
    nodes.nodes[-1].output[0] = LOGITS


def described(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What an exported file says of itself, from its metadata. Raises InputError where it was not written here."""
    if f"{KEY}.widths" not in metadata:
        raise InputError("the ONNX file was not written by ptmq.export_onnx: it does not say which widths it has.")
    found = {key.removeprefix(f"{KEY}."): json.loads(value) for key, value in metadata.items() if key.startswith(KEY)}
    return found | {"widths": {int(key): width for key, width in found["widths"].items()}}
