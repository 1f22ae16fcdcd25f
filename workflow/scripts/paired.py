"""Top-1 of the runs on one backbone, and differences between them that are paired by seed."""

import math

import pandas as pd
from intervals import Estimate, estimate
from tables import with_width


class Missing(Exception):
    """Runs that a claim needs are not there; the text says which."""


class Runs:
    """Top-1 by method, variant, width and seed on one backbone.

    groups: the widths of PTMQ, lowest first · iterations: of its default, a block · standard_error: of an accuracy on
    that many images, in points.
    """

    def __init__(self, runs: pd.DataFrame, backbone: str):
        self.backbone = backbone
        done = with_width(runs[(runs.status == "done") & (runs.backbone == backbone)])
        self.top1 = done.set_index(["method", "variant", "width", "seed"]).top1.sort_index()
        switched = done[done.in_groups.astype(bool) & (done.method == "ptmq")]
        self.groups = list(switched.sort_values("w_bits").width.drop_duplicates())
        usual = switched[switched.variant == "default"] if "default" in set(switched.variant) else switched
        self.iterations = int(usual.iterations.max()) if len(usual) else 0
        worst = switched.top1.min() / 100
        # of one accuracy, in points, where it is largest: at PTMQ's worst width
        self.standard_error = 100 * math.sqrt(worst * (1 - worst) / switched.images.max()) if len(switched) else 0.0

    def of(self, method: str, width: str, variant: str = "default") -> pd.Series:
        """Top-1 by seed. Raises Missing where there is none."""
        try:
            return self.top1.loc[(method, variant, width)]
        except KeyError:
            raise Missing(f"needs {method} ({variant}) at {width}") from None

    def difference(self, one: tuple, other: tuple) -> Estimate:
        """The first minus the second, paired by seed; each is (method, width) or (method, width, variant)."""
        a, b = self.of(*one), self.of(*other)
        seeds = a.index.intersection(b.index)
        if seeds.empty:
            raise Missing(f"needs {one} and {other} with the same seed")
        return estimate(list(a.loc[seeds] - b.loc[seeds]))
