"""Round-to-nearest: the floor of every table. Nothing is learned; only the step sizes are chosen."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ptmq.common.errors import require
from ptmq.methods.interface import Method, register
from ptmq.network.model import MultiBitModel
from ptmq.reconstruction.matching import match_network
from ptmq.reconstruction.settings import CorrectionSettings


@dataclass(frozen=True)
class MinMaxSettings(CorrectionSettings):
    """Step sizes of the whole range: there is nothing to search."""

    step_size_search: str = "minmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step_size_search == "minmax", "step_size_search", "minmax", self.step_size_search)


class Nearest(Method):
    """Round to nearest; where it is asked for, every layer's output is corrected afterwards."""

    Settings = CorrectionSettings

    def calibrate(self, model: MultiBitModel, images: Tensor, seed: int, *execution: Any) -> list[dict[str, Any]]:
        """Search step sizes, then match the corrections."""
        super().calibrate(model, images, seed)
        if self.settings.correction != "none":
            match_network(model, images, self.settings)
        return []


@register
class NearestMinMax(Nearest):
    """Round to nearest on a grid that spans the whole range."""

    name = "nearest_minmax"
    style = ("nearest, min-max step sizes", "#999999", "v", ":")
    Settings = MinMaxSettings


@register
class NearestMSE(Nearest):
    """Round to nearest on the grid of least error, by the search that the learned methods start from."""

    name = "nearest_mse"
    style = ("nearest, MSE step sizes", "#56B4E9", "^", "--")
