"""Top-1 of the runs on one backbone, and differences between them: paired by seed, and by image where that was kept.

Every evaluation keeps which images it classified correctly, beside its record. Two runs on the same images are compared
image by image then. Older records have no such file: their differences are paired by seed alone, and the noise of the
images is that of two accuracies on different ones, which is more.
"""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from intervals import Estimate, Source, estimate, of_images
from safetensors import safe_open
from tables import with_width

Term = tuple[float, str, str, str]  # weight, method, width, variant
KEYS = ["method", "variant", "width", "seed"]


class Missing(Exception):
    """Runs that a claim needs are not there; the text says which."""


@lru_cache(maxsize=64)
def kept(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """What an evaluation kept: packed bits by width, and which images they are of."""
    with safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["info"])  # noqa: SIM118


class Runs:
    """Top-1 by method, variant, width and seed on one backbone.

    root: the folder that the files of the column correct_file are named from · groups: the widths of PTMQ, lowest
    first · iterations: of its default, a block.
    """

    def __init__(self, runs: pd.DataFrame, backbone: str, root: Path = Path()):
        self.backbone, self.root = backbone, root
        done = with_width(runs[(runs.status == "done") & (runs.backbone == backbone)])
        self.rows = done.reindex(columns=[*KEYS, "top1", "images", "correct_file"]).set_index(KEYS).sort_index()
        switched = done[done.in_groups.astype(bool) & (done.method == "ptmq")]
        self.groups = list(switched.sort_values("w_bits").width.drop_duplicates())
        usual = switched[switched.variant == "default"] if "default" in set(switched.variant) else switched
        self.iterations = int(usual.iterations.max()) if len(usual) else 0

    def of(self, method: str, width: str, variant: str = "default") -> pd.DataFrame:
        """The rows by seed. Raises Missing where there is none."""
        try:
            return self.rows.loc[(method, variant, width)]
        except KeyError:
            raise Missing(f"needs {method} ({variant}) at {width}") from None

    def difference(self, one: tuple, other: tuple) -> Estimate:
        """The first minus the second, in points; each is (method, width) or (method, width, variant)."""
        terms = [(weight, *run, *["default"][: 3 - len(run)]) for weight, run in ((1, one), (-1, other))]
        return self.contrast(*terms)

    def contrast(self, *terms: Term) -> Estimate:
        """A weighted sum of accuracies, in points, over the seeds that all of them were run with."""
        rows = [self.of(*run) for _, *run in terms]
        seeds = sorted(set.intersection(*(set(part.index) for part in rows)))
        if not seeds:
            raise Missing("needs the same seed of " + " and ".join(f"{m} ({v}) at {w}" for _, m, w, v in terms))
        rows = [part.loc[seeds] for part in rows]
        by_image = self.by_image(terms, rows)
        if by_image is not None:
            return of_images(by_image)
        values = sum(weight * part.top1 for (weight, *_), part in zip(terms, rows, strict=True))
        noise = sum(weight**2 * sampling(part) for (weight, *_), part in zip(terms, rows, strict=True))
        return estimate(list(values), Source(noise))

    def by_image(self, terms: Sequence[Term], rows: Sequence[pd.DataFrame]) -> np.ndarray | None:
        """What every image adds to the weighted sum with every seed, in points, (seeds, images).

        None where a run did not keep it, or was evaluated on other images than the rest.
        """
        if any(part.correct_file.isna().any() for part in rows):
            return None
        files = [[kept(self.root / name) for name in part.correct_file] for part in rows]
        same = [images for part in files for _, images in part]
        if any(images != same[0] for images in same):
            return None
        count = same[0]["images"]
        total = 0.0
        for (weight, _, width, variant), part in zip(terms, files, strict=True):
            mode = variant.partition("+")[2]
            key = f"{width}+{mode}" if mode else width
            correct = np.stack([np.unpackbits(bits[key], count=count) for bits, _ in part])
            total += 100.0 * weight * correct.astype(float)
        return total


def sampling(rows: pd.DataFrame) -> float:
    """The variance that drawing the images gives an accuracy, in points²: binomial, with a hit and a miss more."""
    images = rows.images.iloc[0]
    top1 = (rows.top1.mean() * images + 100) / (images + 2)
    return top1 * (100 - top1) / images


def by(found: Estimate) -> str:
    """What a difference was paired by, as the table says it."""
    return "seed, image" if found.paired else "seed"
