"""Round to nearest with bias correction: what rounding moves on average is taken back, channel by channel.

Bias correction (https://arxiv.org/abs/1906.04721): the mean of a layer's output is made that of the FP network, here
as measured on calibration images, for every width on its own features.
`correction: gain` matches the deviations, too.
Departure: a layer and width where the shift does not lower the block's error goes without.
"""

from dataclasses import dataclass

from ptmq.methods.interface import Method, register
from ptmq.reconstruction.settings import CorrectionSettings


@dataclass(frozen=True)
class NearestCorrectedSettings(CorrectionSettings):
    """The shift alone."""

    correction: str = "shift"


@register
class NearestCorrected(Method):
    """Round to nearest on the grid of least error, then bias correction."""

    name = "nearest_corrected"
    style = ("nearest, bias correction", "#6699CC", "H", "-.")
    Settings = NearestCorrectedSettings
