"""QDrop: drop activation quantization at random while learning rounding.

Paper: https://arxiv.org/abs/2203.05740. The optimisation loop is ptmq/reconstruct.py, whose defaults are
QDrop's: block by block, rounding and activation step sizes together, each element of the block's input and
of every activation inside it kept quantized with probability `keep`.
"""

from ptmq.methods import Reconstruction, register


@register
class QDrop(Reconstruction):
    """Rounding and step sizes of one width, learned jointly under random dropping."""

    name = "qdrop"
    per_width = True
