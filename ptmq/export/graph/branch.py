"""The network at one width as ONNX nodes: integers in the places of the skeleton's layers and quantizers.

A tensor on a grid is handed on as its codes, uint8; DequantizeLinear stands right before what computes with it, and
QuantizeLinear right behind. That is the form in which onnxruntime puts integer kernels.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ptmq.export.frozen import Frozen, FrozenLayer, FrozenQuantizer, Grid
from ptmq.export.graph.blocks import Attributes, blocks_of
from ptmq.export.graph.nodes import Nodes
from ptmq.export.graph.stored import array, full_weight, signed_codes
from ptmq.export.skeleton import DOMAIN, LAYER
from ptmq.network.layers import GridLayer

MOVING = (
    *("Reshape", "Transpose", "Split", "Slice", "Squeeze", "Unsqueeze", "Flatten", "Identity", "MaxPool", "Gather"),
    *("Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
)
MULTIPLYING = ("Conv", "ConvTranspose", "Gemm", "MatMul")
LARGEST = 255
UNPREPARED = "the model was not calibrated with target: onnx"


@dataclass
class Value:
    """A tensor: the name of its codes and their grid, the name of its numbers, or both."""

    codes: str = ""
    grid: Grid | None = None
    numbers: str = ""


@dataclass(frozen=True)
class Float:
    """What stays in floating point: a layer or a product, and why."""

    layer: str
    why: str


class Branch:
    """Writes a network at one width.

    parts: its numbers · layers: the layers that they were frozen from, by name · packed: whether weights are stored
    packed · target: that whose kernels the model was calibrated for, or 'none'.
    """

    def __init__(self, nodes: Nodes, parts: Frozen, layers: Mapping[str, GridLayer], packed: bool, target: str):
        self.nodes, self.parts, self.layers, self.packed, self.target = nodes, parts, layers, packed, target
        self.values: dict[str, Value] = {}
        self.shapes: dict[str, list[int]] = {}  # of the skeleton's tensors, 0 for the batch
        self.floats: list[Float] = []
        self.integer = 0  # layers and products that integer kernels compute

    def write(self, graph: onnx.GraphProto, images: str) -> str:
        """Append the nodes of a skeleton that reads `images`; returns the name of the logits."""
        self.values[graph.input[0].name] = Value(numbers=images)
        self.shapes = {v.name: [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in graph.value_info}
        known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.values |= {name: Value(numbers=self.nodes.constants.add(value)) for name, value in known.items()}
        for node in graph.node:
            if node.domain == DOMAIN:
                self.symbol(node)
            elif node.op_type in (*MOVING, "Shape") and self.values[node.input[0]].codes:
                self.move(node)
            elif node.op_type == "Pad" and self.values[node.input[0]].codes and _with_zeros(node, known):
                self.pad(node)
            else:
                self.plain(node)
        return self.numbers(graph.output[0].name)

    def symbol(self, node: onnx.NodeProto) -> None:
        """A layer or a quantizer."""
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        name = attributes["name"].decode()
        part, before = self.parts[name], node.input[0]
        if node.op_type == LAYER:
            assert isinstance(part, FrozenLayer)
            if part.kind.startswith("Conv"):
                out = Value(numbers=self.convolution(name, part, before))
            else:
                out = Value(numbers=self.linear(name, part, before, attributes["dims"]))
        else:
            assert isinstance(part, FrozenQuantizer)
            out = self.quantized(part, before)
        self.values[node.output[0]] = out

    def quantized(self, part: FrozenQuantizer, before: str) -> Value:
        """A tensor on its grid."""
        x, grid, nodes = self.numbers(before), part.grid, self.nodes
        if grid is None:
            return Value(numbers=x if part.relu is None else nodes("Clip", x, *map(np.float32, part.bounds or ())))
        step = array(grid.step)
        if not grid.fits:  # a range far from 0
            ends = [np.float32(end - grid.zero) for end in (grid.low, grid.high)]
            codes = nodes("Clip", nodes("Round", nodes("Div", x, step)), *ends)
            return Value(numbers=nodes("Mul", codes, step))
        codes = nodes("QuantizeLinear", x, step, np.uint8(grid.zero))
        if grid.low > 0 or grid.high < LARGEST:
            codes = nodes("Clip", codes, np.uint8(grid.low), np.uint8(grid.high))
        return Value(codes, grid)

    def convolution(self, name: str, part: FrozenLayer, before: str) -> str:
        """A convolution: of integers between two grids, else of numbers."""
        nodes, how = self.nodes, convolution_attributes(part)
        why = part.why_float or self.missing(part, before)
        if not why:
            weight, x, how = self.integers(name, part, before, how)
            bias = []
            if part.bias_codes is not None:
                bias = [nodes("DequantizeLinear", array(part.bias_codes), array(part.bias_scale), axis=0)]
            self.integer += 1
        else:
            self.floats.append(Float(name, why))
            weight, x = full_weight(nodes, self.layers[name], part, self.packed), self.spelt_out(before)
            full = part.full_bias()
            bias = [] if full is None else [nodes.constants.add(array(full))]
        return nodes("Conv", x, weight, *bias, name=name, **how)

    def integers(self, name: str, part: FrozenLayer, before: str, how: Attributes) -> tuple[str, str, Attributes]:
        """Weight and input of an integer convolution, and how it moves: over pixels, or over blocks of them."""
        codes = signed_codes(self.nodes, self.layers[name], part, self.packed)
        blocks = blocks_of(part, self.shapes.get(before, ()))
        if blocks is None:
            return self.scaled(codes, part), self.numbers(before), how
        value, weight = self.values[before], blocks.weight(self.nodes, codes, self.layers[name].weight.shape)
        x = self.dequantized(Value(blocks.channels(self.nodes, value.codes), value.grid))
        return self.scaled(weight, part), x, how | blocks.attributes()

    def missing(self, part: FrozenLayer, before: str) -> str:
        """Why a convolution is no integer kernel's; empty where it is one's."""
        if why := self.unquantized(part, before):
            return why
        if part.bias_scale is not None:
            return ""
        return UNPREPARED if self.target == "none" else "what it gives is not quantized"

    def unquantized(self, part: FrozenLayer, before: str) -> str:
        """Which of a layer's factors is in floating point; empty where none is."""
        if not self.values[before].codes:
            return "what enters it is in floating point"
        return "its weight is in floating point" if part.codes is None else ""

    def linear(self, name: str, part: FrozenLayer, before: str, dims: int) -> str:
        """A linear layer: its sum is of integers, its bias in floating point."""
        nodes = self.nodes
        why = part.why_float or self.unquantized(part, before)
        if why:
            self.floats.append(Float(name, why))
            weight = full_weight(nodes, self.layers[name], part, self.packed)
        else:
            self.integer += 1
            weight = ""
        x = self.spelt_out(before) if why else self.numbers(before)
        if dims == 2:
            out = nodes("Gemm", x, weight or self.weight(name, part, axis=0), name=name, transB=1)
        else:
            weight = nodes("Transpose", weight, perm=[1, 0]) if weight else self.weight(name, part, axis=1)
            out = nodes("MatMul", x, weight, name=name)
        bias = part.full_bias()
        return out if bias is None else nodes("Add", out, array(bias))

    def weight(self, name: str, part: FrozenLayer, axis: int) -> str:
        """The integer weight of a linear layer, dequantized; axis 1: (in, out)."""
        codes = signed_codes(self.nodes, self.layers[name], part, self.packed, transposed=axis == 1)
        return self.scaled(codes, part, axis)

    def scaled(self, codes: str, part: FrozenLayer, axis: int = 0) -> str:
        """A weight's codes, dequantized along the axis of its output channels."""
        zeros = np.zeros(len(part.scale), dtype=np.int8)  # without them, onnxruntime leaves a Gemm in floating point
        return self.nodes("DequantizeLinear", codes, array(part.scale), zeros, axis=axis)

    def move(self, node: onnx.NodeProto) -> None:
        """What moves codes as it would move numbers."""
        value = self.values[node.input[0]]
        outputs = [self.nodes.name() for _ in node.output]
        rest = [self.numbers(name) for name in node.input[1:]]
        self.nodes.copy(node, [value.codes, *rest], outputs)
        for name, output in zip(node.output, outputs, strict=True):
            self.values[name] = Value(numbers=output) if node.op_type == "Shape" else Value(output, value.grid)

    def pad(self, node: onnx.NodeProto) -> None:
        """Zeros around codes are zero points."""
        value = self.values[node.input[0]]
        assert value.grid is not None
        zero = self.nodes.constants.add(np.uint8(value.grid.zero))
        output = self.nodes.name()
        rest = [self.numbers(name) for name in node.input[3:]]
        self.nodes.copy(node, [value.codes, self.numbers(node.input[1]), zero, *rest], [output])
        self.values[node.output[0]] = Value(output, value.grid)

    def plain(self, node: onnx.NodeProto) -> None:
        """Any other node, on numbers."""
        outputs = [self.nodes.name() if name else "" for name in node.output]
        if node.op_type in MULTIPLYING:
            self.product(node)
        self.nodes.copy(node, [self.numbers(name) for name in node.input], outputs)
        for name, output in zip(node.output, outputs, strict=True):
            self.values[name] = Value(numbers=output)

    def product(self, node: onnx.NodeProto) -> None:
        """Count a product of two tensors, or name it."""
        name = node.name or node.output[0]
        if all(self.values[side].codes for side in node.input[:2]):
            self.integer += 1
        else:
            self.floats.append(Float(name, "one of its sides is in floating point"))

    def numbers(self, name: str) -> str:
        """A tensor's numbers."""
        if not name:
            return ""
        value = self.values[name]
        if not value.numbers:
            value.numbers = self.dequantized(value)
        return value.numbers

    def dequantized(self, value: Value) -> str:
        """The numbers of codes on a grid."""
        assert value.grid is not None
        return self.nodes("DequantizeLinear", value.codes, array(value.grid.step), np.uint8(value.grid.zero))

    def spelt_out(self, name: str) -> str:
        """A tensor's numbers for a layer in floating point, without a DequantizeLinear.

        Behind one, onnxruntime would round the layer's weight and bias by itself.
        """
        value = self.values[name]
        if value.grid is None:
            return self.numbers(name)
        codes = self.nodes("Cast", value.codes, to=onnx.TensorProto.FLOAT)
        difference = self.nodes("Sub", codes, np.float32(value.grid.zero))
        return self.nodes("Mul", difference, array(value.grid.step))


def _with_zeros(node: onnx.NodeProto, known: Mapping[str, np.ndarray]) -> bool:
    """Whether a Pad adds zeros; it does without a value. known: the constants of its graph."""
    mode = [a.s for a in node.attribute if a.name == "mode"]
    value = node.input[2] if len(node.input) > 2 else ""
    return mode in ([], [b"constant"]) and (not value or (value in known and not known[value].any()))


def convolution_attributes(part: FrozenLayer) -> Attributes:
    """How a convolution moves over its input, in ONNX's words."""
    moves = part.moves
    how: Attributes = {
        "strides": list(moves["stride"]), "dilations": list(moves["dilation"]), "group": moves["groups"],
    }  # fmt: skip
    padding = moves["padding"]
    if isinstance(padding, str):
        return how | {"auto_pad": {"same": "SAME_UPPER", "valid": "VALID"}[padding]}
    return how | {"pads": [*padding, *padding]}
