"""What switches its width in a network: the quantizer of a weight or of an activation."""

from torch import Tensor, nn

from ptmq.common.bits import FP


class Quantizer(nn.Module):
    """Gives a tensor at the selected width, of the same shape; at FP as it is.

    A new kind is a subclass with a `forward`; at first FP is selected.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bits = FP

    def set_bits(self, bits: int) -> None:
        """Select a width."""
        self.bits = bits

    def search_step_sizes(self, x: Tensor, search: str) -> None:
        """Set step sizes from the values of x by `search`; a quantizer without any has nothing to set."""
