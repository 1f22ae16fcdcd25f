"""The mean of a few seeds and its 95 % interval, from independent sources of noise. docs/statistics.md derives it.

    half of the interval = sqrt(sum over the sources of (t(df) x standard error)²)

Every source has its own standard error of the mean, and Student's t of its own degrees of freedom. The interval then
covers at least what it says, however large one source is beside another (Banerjee, Sankhyā 22, 1960).
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.stats import t

LEVEL = 0.95
# Two images more, one in favour of each method: where they never differ on a few images, they may on others.
BESIDE = 2 * 100.0**2


class Source(NamedTuple):
    """One source of noise: the variance that it gives the mean, and the degrees of freedom that it was estimated with.

    Infinite variance: nothing is known about it. Infinite df: it is known.
    """

    variance: float
    df: float = math.inf


UNKNOWN = Source(math.inf)  # of the seeds, where there is only one


class Estimate(NamedTuple):
    """A mean over n seeds; sd: between the seeds, NaN for one · paired: its noise of images is that of a difference."""

    mean: float
    sd: float
    n: int
    sources: tuple[Source, ...]
    paired: bool = False

    def half(self, level: float = LEVEL) -> float:
        """Half the width of the interval; infinite with one seed."""
        return math.sqrt(sum(quantile(level, df) ** 2 * variance for variance, df in self.sources))

    def of_these_runs(self) -> float:
        """Half the width of the interval of these runs alone, whatever other seeds would give: that of the images."""
        return self._replace(sources=tuple(source for source in self.sources if source != UNKNOWN)).half()

    def __str__(self) -> str:
        half = self.half()
        if math.isfinite(half):
            return f"{self.mean:.2f} ± {half:.2f}"
        return f"{self.mean:.2f}" + (f" (± {self.of_these_runs():.2f})" if self.paired else "")


class Interval(NamedTuple):
    """A value with the two ends of its 95 % interval, which need not be equally far."""

    value: float
    low: float
    high: float


@cache
def quantile(level: float, df: float) -> float:
    """Student's t that a share `level` of the draws stays below in size; the normal distribution's for infinite df."""
    return float(t.ppf((1 + level) / 2, df))


def estimate(values: Sequence[float], *others: Source) -> Estimate:
    """Of the values of all seeds; others: what is the same for every seed, and so does not show between them.

    >>> print(estimate([91.2, 91.4, 91.3]))
    91.30 ± 0.25
    >>> print(estimate([91.2]))  # one seed says nothing about the others
    91.20
    """
    n = len(values)
    if n < 2:
        return Estimate(statistics.fmean(values), math.nan, n, (UNKNOWN, *others))
    sd = statistics.stdev(values)
    return Estimate(statistics.fmean(values), sd, n, (Source(sd**2 / n, n - 1), *others))


def of_images(x: np.ndarray) -> Estimate:
    """Of what every image gives with every seed, (seeds, images): such as 100 x (correct by one - by another method).

    The images are the same for all seeds. So the noise has two parts: what differs between the seeds, their own
    variance, and what they share, the mean covariance of two seeds over the images. With one seed the second part is
    all that is known: what other images would give these runs.
    """
    seeds, images = x.shape
    within = float(x.var(1, ddof=1).sum())  # of the seeds one by one
    if seeds > 1:
        total = float(x.sum(0).var(ddof=1))  # of their sum: theirs, and all covariances
        shared = max(total - within, 0.0) / (seeds * (seeds - 1))
    else:
        shared = within  # one seed does not tell apart what it has for itself
    noise = Source((shared + BESIDE / images) / images)
    return estimate(x.mean(1).tolist(), noise)._replace(paired=True)


def lowest(estimates: Mapping[str, Estimate]) -> tuple[str, Interval]:
    """The name of the lowest of several means, and an interval of the lowest true value.

    Its lower end is the lowest of theirs. Its upper end is the lowest of theirs at a higher level (Bonferroni), since
    any of them may be the lowest by chance.
    """
    name = min(estimates, key=lambda name: estimates[name].mean)
    level = 1 - (1 - LEVEL) / len(estimates)
    low = min(e.mean - e.half() for e in estimates.values())
    high = min(e.mean + e.half(level) for e in estimates.values())
    return name, Interval(estimates[name].mean, low, high)


def ratio(above: Sequence[float], below: Sequence[float]) -> Interval:
    """Of two positive quantities that were measured in runs of their own: the geometric means' ratio.

    >>> found = ratio([40.0, 42.0, 41.0], [20.0, 21.0, 19.0])
    >>> f"{found.value:.2f}, from {found.low:.2f} to {found.high:.2f}"
    '2.05, from 1.79 to 2.36'
    """
    one, other = (estimate(list(map(math.log, values))) for values in (above, below))
    both = Estimate(one.mean - other.mean, math.nan, min(one.n, other.n), one.sources + other.sources)
    half = both.half()
    return Interval(math.exp(both.mean), math.exp(both.mean - half), math.exp(both.mean + half))


def around(found: Estimate) -> Interval:
    """The estimate's interval."""
    return Interval(found.mean, found.mean - found.half(), found.mean + found.half())


def beside_one_run(values: Sequence[float]) -> Interval:
    """Of the mean of our seeds, to be held against one run of somebody else on the same images.

    Their run has the spread of ours, once more; images make no difference, being the same.
    """
    ours = estimate(values)
    theirs = ours._replace(sources=tuple(Source(s.variance * (1 + ours.n), s.df) for s in ours.sources))
    return around(theirs)
