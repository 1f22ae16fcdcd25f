"""QDrop: drop activation quantization at random while learning rounding.

Paper: https://arxiv.org/abs/2203.05740. Block by block, rounding and activation step sizes together; each element of
the block's input and of every activation inside it stays quantized with probability `keep`.
Departures: step sizes start from the suite's search, as for every method (`step_size_search: shift` is QDrop's);
learning rates and iterations are those of docs/defaults.md, not 1e-3, 4e-5 and 20,000.
"""

from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction


@register
class QDrop(Reconstruction):
    """Rounding and step sizes of one width, learned jointly under random dropping."""

    name = "qdrop"
    style = ("QDrop", "#0072B2", "s", (0, (1, 1)))
    per_width = True
