"""AdaRound: learn layer by layer whether a weight is rounded down or up.

Paper: https://arxiv.org/abs/2004.10568. The error is taken after the activation function that directly follows the
layer; the layer sees what the quantized layers before it give, its target is what the FP network gives there.
Activations stay FP while weights are learned, and are then rounded to nearest with the step sizes of the search.
Departures: the grid is asymmetric per channel and the first and the last layer have 8-bit weights, as for every
method of this suite; learning rate and iterations are those of docs/defaults.md, not 1e-3 and 10,000; β falls linearly.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ptmq.common.errors import require
from ptmq.methods.interface import register
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.model import Unit
from ptmq.reconstruction.passes import AdaptiveRoundingPass, Passes
from ptmq.reconstruction.settings import AdaptiveRoundingSettings


@dataclass(frozen=True)
class AdaRoundSettings(AdaptiveRoundingSettings):
    """Nothing is dropped, and no step size is learned."""

    keep: float = 1.0
    lr_step_size: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.keep == 1, "keep", "1 (AdaRound drops nothing)", self.keep)
        require(self.lr_step_size == 0, "lr_step_size", "0 (AdaRound learns no step size)", self.lr_step_size)


class LayerByLayer(AdaptiveRoundingPass):
    """One layer after the other, each with the activation function behind it."""

    def parts(self, unit: Unit) -> Sequence[Unit]:
        """Layer by layer."""
        return unit.by_layer()


@register
class AdaRound(Reconstruction):
    """Rounding of one layer after the other under FP activations."""

    name = "adaround"
    style = ("AdaRound", "#009E73", "P", (0, (5, 1)))
    Settings = AdaRoundSettings
    Pass = LayerByLayer
    per_width = True

    def passes(self) -> Passes:
        """One pass, under FP activations."""
        return self.weights_alone()
