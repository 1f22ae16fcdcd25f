"""A convolution of an image that moves by two pixels, computed on blocks of 2 x 2 pixels, by which it moves by one.

Integer kernels copy the channels of a pixel for every weight of the kernel that meets it, and an image has three. A
block has twelve, and fewer weights meet it. Products and sums stay the same: where the kernel of blocks is wider than
that of pixels it is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptmq.export.frozen import FrozenLayer
from ptmq.export.graph.nodes import Nodes, int64

PIXELS = 2  # of a side of a block
FEW = 3  # input channels up to which it pays
EACH = [(row, column) for row in range(PIXELS) for column in range(PIXELS)]  # the pixels of a block
LAST = 2**31 - 1  # of a dimension: all of it
Attributes = dict[str, list[int] | int | str]  # of a convolution, in ONNX's words


@dataclass(frozen=True)
class Blocks:
    """A square kernel of `kernel` pixels as one of `size` blocks, `before` of which lie before that of the output."""

    kernel: int

    @property
    def before(self) -> int:
        """Blocks that hold the pixels in front of the middle one."""
        return -(-(self.kernel // 2) // PIXELS)

    @property
    def lead(self) -> int:
        """Pixels of zeros in front of the kernel."""
        return PIXELS * self.before - self.kernel // 2

    @property
    def size(self) -> int:
        """Blocks that the kernel meets, along a side."""
        return -(-(self.lead + self.kernel) // PIXELS)

    def attributes(self) -> Attributes:
        """How it moves over the blocks, in ONNX's words."""
        pads = [self.before] * 2 + [self.size - 1 - self.before] * 2
        return {"strides": [1, 1], "dilations": [1, 1], "pads": pads}

    def channels(self, nodes: Nodes, codes: str) -> str:
        """(batch, channels, height, width) -> (batch, 4 * channels, height / 2, width / 2).

        It is SpaceToDepth, which onnxruntime before 1.28 cannot compute on bytes.
        """
        ends, axes, steps = int64(LAST, LAST), int64(2, 3), int64(PIXELS, PIXELS)
        return nodes("Concat", *(nodes("Slice", codes, int64(*start), ends, axes, steps) for start in EACH), axis=1)

    def weight(self, nodes: Nodes, codes: str, shape: Sequence[int]) -> str:
        """Codes (out, in, kernel, kernel), of which 0 is a zero, as those of the blocks; made while a file loads."""
        out, channels, size = *shape[:2], self.size
        behind = PIXELS * size - self.lead - self.kernel
        padded = nodes("Pad", codes, int64(0, 0, self.lead, self.lead, 0, 0, behind, behind))
        split = nodes("Reshape", padded, int64(out, channels, size, PIXELS, size, PIXELS))
        moved = nodes("Transpose", split, perm=[0, 3, 5, 1, 2, 4])  # in the order of `channels`
        return nodes("Reshape", moved, int64(out, PIXELS**2 * channels, size, size))


def blocks_of(part: FrozenLayer, shape: Sequence[int]) -> Blocks | None:
    """The blocks of a convolution of a tensor of this shape; None for one that stays as it is.

    It has an odd square kernel in the middle of its padding, moves by two pixels, and reads few channels, all of them,
    of a tensor of known and even height and width. shape: (0, channels, height, width), or what is known of it.
    """
    assert part.codes is not None
    (_, channels, *kernel), moves = part.codes.shape, part.moves
    middle = kernel[0] // 2
    expected = {"stride": (PIXELS, PIXELS), "padding": (middle, middle), "dilation": (1, 1), "groups": 1}
    if part.kind != "Conv2d" or kernel != [2 * middle + 1] * 2 or moves != expected or channels > FEW:
        return None
    if len(shape) != 4 or not all(side and side % PIXELS == 0 for side in shape[2:]):
        return None
    return Blocks(kernel[0])
