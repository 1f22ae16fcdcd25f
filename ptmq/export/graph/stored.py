"""How the codes of a weight lie in a file, and the nodes that make int8 weights of them when a session loads it.

In a file of one width a weight is int8 right away. In a file of several, codes of fewer than 8 bits are packed, and a
nested weight is its one code for all widths, with the learned bits packed beside it. onnxruntime computes constants
once, while it loads a file: what is made here costs nothing at run time.
"""

import numpy as np
from onnx import TensorProto
from torch import Tensor

from ptmq.common.bits import FP
from ptmq.export.frozen import FrozenLayer
from ptmq.export.graph.nodes import Nodes, int32, int64
from ptmq.network.layers import GridLayer
from ptmq.quantization.step_size import PARENT_BITS
from ptmq.quantization.weight_quantizer import NestedWeightQuantizer, pack_bits

BITS_OF_A_BYTE = 2 ** np.arange(8)
HALF = np.array(0.5, np.float32)
FLOAT, INT8, INT32 = TensorProto.FLOAT, TensorProto.INT8, TensorProto.INT32


def array(tensor: Tensor) -> np.ndarray:
    """A tensor as an array of numpy's."""
    return tensor.detach().cpu().numpy()


def signed_codes(nodes: Nodes, layer: GridLayer, frozen: FrozenLayer, packed: bool, transposed: bool = False) -> str:
    """The weight's codes minus their zero points, int8: the name of a constant, or of what makes it.

    (out, in, ...), or, transposed, (in, out).
    """
    if not packed:
        values = array(frozen.values()).astype(np.int8)
        return nodes.constants.add(values.T if transposed else values)
    codes = nodes("Cast", difference(nodes, layer, frozen), to=INT8)
    return nodes("Transpose", codes, perm=[1, 0]) if transposed else codes


def full_weight(nodes: Nodes, layer: GridLayer, frozen: FrozenLayer, packed: bool) -> str:
    """The weight (out, in, ...), float32, for a kernel of floating point; stored as its codes where it has any."""
    if frozen.bits == FP:
        return nodes.constants.add(array(frozen.full_weight()))
    scale = array(frozen.per_channel(frozen.scale))
    if not packed and frozen.fits():
        values = nodes("Cast", array(frozen.values()).astype(np.int8), to=FLOAT)
    elif not (frozen.zero == frozen.zero.round()).all():
        assert frozen.codes is not None
        codes = nodes("Cast", array(frozen.codes), to=FLOAT)
        values = nodes("Sub", codes, array(frozen.per_channel(frozen.zero)))
    else:
        values = nodes("Cast", difference(nodes, layer, frozen), to=FLOAT)
    return nodes("Mul", values, scale)


def difference(nodes: Nodes, layer: GridLayer, frozen: FrozenLayer) -> str:
    """Codes minus zero points, int32, made of what is stored packed."""
    quantizer = layer.quantizer
    if isinstance(quantizer, NestedWeightQuantizer):
        return nodes("Sub", *shifted(nodes, quantizer, frozen))
    zero = array(frozen.per_channel(frozen.zero))
    in_a_byte = zero.min() >= 0 and zero.max() < 2**PARENT_BITS
    stored = nodes("Cast", zero.astype(np.uint8), to=INT32) if in_a_byte else int32(zero)
    return nodes("Sub", unpacked(nodes, frozen), stored)


def shifted(nodes: Nodes, quantizer: NestedWeightQuantizer, frozen: FrozenLayer) -> tuple[str, str]:
    """A nested weight's code and zero point at a width, int32: those at 8 bits shifted, as divisions."""
    bits = frozen.bits
    code, shift = nodes("Cast", array(quantizer.code), to=INT32), quantizer.shift(bits)
    zero = nodes("Cast", array(frozen.per_channel(quantizer.zero_point)), to=INT32)
    if not shift.any():
        return code, zero
    exponents = shift if len(shift.unique()) > 1 else shift.flatten()[:1]
    divisor, learned = array(2**exponents).astype(np.int32), quantizer.learned.tolist()
    if bits in learned:
        plane = array(quantizer.planes[learned.index(bits)])
        code = nodes("Div", code, divisor)
        code = nodes("Add", code, bits_of(nodes, plane[None], quantizer.shape))
    else:
        exact = nodes("Div", nodes("Cast", code, to=FLOAT), divisor.astype(np.float32))
        nearest = nodes("Round", exact) if quantizer.ties == "even" else nodes("Floor", nodes("Add", exact, HALF))
        code = nodes("Cast", nearest, to=INT32)
    return nodes("Min", code, int32(2**PARENT_BITS // divisor - 1)), nodes("Div", zero, divisor)


def unpacked(nodes: Nodes, frozen: FrozenLayer) -> str:
    """Codes of one width, int32."""
    assert frozen.codes is not None
    if frozen.bits == PARENT_BITS:
        return nodes("Cast", array(frozen.codes), to=INT32)
    planes = [array(pack_bits(frozen.codes >> bit & 1)) for bit in range(frozen.bits)]
    return bits_of(nodes, np.stack(planes), frozen.codes.shape)


def bits_of(nodes: Nodes, planes: np.ndarray, shape: tuple[int, ...]) -> str:
    """Integers, int32, of `shape`, from their bits: uint8, (bits, bytes), the lowest first, packed eight to a byte."""
    numbers = nodes("Cast", planes[:, :, None], to=INT32)
    bits = nodes("Mod", nodes("Div", numbers, int32(BITS_OF_A_BYTE)), int32(2))  # (bits, bytes, 8)
    powers = int32(2 ** np.arange(len(planes)))[:, None, None]
    codes = nodes("ReduceSum", nodes("Mul", bits, powers), int64(0), keepdims=0)  # (bytes, 8)
    flat = nodes("Reshape", codes, int64(-1))
    return nodes("Reshape", nodes("Slice", flat, int64(0), int64(int(np.prod(shape)))), int64(*shape))
