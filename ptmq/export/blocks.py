"""A convolution of an image that moves by two pixels, computed on blocks of 2 x 2 pixels, by which it moves by one.

Integer kernels copy the channels of a pixel for every weight of the kernel that meets it, and an image has three. A
block has twelve, and a quarter of the weights meet it. Products and sums stay the same: where the kernel of blocks is
wider than that of pixels it is zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptmq.export.frozen import FrozenLayer
from ptmq.export.nodes import Nodes, int64

PIXELS = 2  # of a side of a block
FEW = 4  # input channels up to which it pays


@dataclass(frozen=True)
class Blocks:
    """A square kernel of `kernel` pixels with zeros around it, as one of `size` blocks of which `before` lie before."""

    kernel: int
    before: int

    @property
    def lead(self) -> int:
        """Pixels of zeros in front of the kernel."""
        return PIXELS * self.before - (self.kernel - 1) // 2

    @property
    def size(self) -> int:
        """Blocks that the kernel meets, along a side."""
        return -(-(self.lead + self.kernel) // PIXELS)

    def attributes(self) -> dict[str, list[int] | int | str]:
        """How it moves over the blocks, in ONNX's words."""
        pads = [self.before] * 2 + [self.size - 1 - self.before] * 2
        return {"strides": [1, 1], "dilations": [1, 1], "pads": pads}

    def images(self, nodes: Nodes, codes: str) -> str:
        """(batch, channels, height, width) -> (batch, 4 * channels, height / 2, width / 2)."""
        return nodes("SpaceToDepth", codes, blocksize=PIXELS)

    def weight(self, nodes: Nodes, codes: str, shape: Sequence[int]) -> str:
        """Codes (out, in, kernel, kernel), of which 0 is a zero, as those of the blocks; made while a file loads."""
        out, channels, size = *shape[:2], self.size
        behind = PIXELS * size - self.lead - self.kernel
        padded = nodes("Pad", codes, int64(0, 0, self.lead, self.lead, 0, 0, behind, behind))
        split = nodes("Reshape", padded, int64(out, channels, size, PIXELS, size, PIXELS))
        moved = nodes("Transpose", split, perm=[0, 3, 5, 1, 2, 4])  # as SpaceToDepth orders the channels
        return nodes("Reshape", moved, int64(out, PIXELS**2 * channels, size, size))


def blocks_of(part: FrozenLayer, shape: Sequence[int]) -> Blocks | None:
    """The blocks of a convolution of a tensor of this shape, which may be unknown; None for one that stays as it is."""
    assert part.codes is not None
    _, channels, *kernel = part.codes.shape
    size, moves = kernel[0], part.moves
    square = part.kind == "Conv2d" and kernel[1] == size and size % PIXELS == 1
    plain = square and moves["groups"] == 1 and channels <= FEW and tuple(moves["dilation"]) == (1, 1)
    if not plain or tuple(moves["stride"]) != (PIXELS, PIXELS) or tuple(moves["padding"]) != (size // 2, size // 2):
        return None
    if len(shape) != 4 or not all(side and side % PIXELS == 0 for side in shape[2:]):
        return None
    return Blocks(size, -(-(size // 2) // PIXELS))
