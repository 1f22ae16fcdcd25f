"""Round-to-nearest: the floor of every table. Nothing is learned; only the step sizes are chosen."""

from dataclasses import dataclass

from ptmq.common.errors import require
from ptmq.methods.interface import Method, register
from ptmq.reconstruction.settings import CorrectionSettings


@dataclass(frozen=True)
class MinMaxSettings(CorrectionSettings):
    """Step sizes of the whole range: there is nothing to search."""

    step_size_search: str = "minmax"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.step_size_search == "minmax", "step_size_search", "minmax", self.step_size_search)


@register
class NearestMinMax(Method):
    """Round to nearest on a grid that spans the whole range."""

    name = "nearest_minmax"
    style = ("nearest, min-max step sizes", "#999999", "v", ":")
    Settings = MinMaxSettings


@register
class NearestMSE(Method):
    """Round to nearest on the grid of least error, by the search that the learned methods start from."""

    name = "nearest_mse"
    Settings = CorrectionSettings
    style = ("nearest, MSE step sizes", "#56B4E9", "^", "--")
