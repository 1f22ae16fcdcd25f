"""Mean, standard deviation and 95 % interval of a few seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import t


class Estimate(NamedTuple):
    """A mean over n seeds; sd and ci95 (half the width of the interval, Student's t) are NaN for one seed."""

    mean: float
    sd: float
    n: int
    ci95: float

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if math.isnan(self.ci95) else f" ± {self.ci95:.2f}")


def estimate(values: Sequence[float]) -> Estimate:
    """Of the values of all seeds."""
    n = len(values)
    if n < 2:
        return Estimate(statistics.fmean(values), math.nan, n, math.nan)
    sd = statistics.stdev(values)
    return Estimate(statistics.fmean(values), sd, n, float(t.ppf(0.975, n - 1)) * sd / math.sqrt(n))
