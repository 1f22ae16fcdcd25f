"""Datasets by name: each in three fixed splits, from the package, from a folder, downloaded or of another package.

`folder:PATH` is any folder of images in the standard layout (ptmq/data/folder.py). A backbone belongs to one dataset;
one with the same classes, such as a subset, serves it, too.

`train` is for training and calibration, `heldout` (training images too, apart) for choosing settings, `test`
only for the numbers that are reported.
"""

import os
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from ptmq.common.errors import one_of
from ptmq.data import cifar10, digits
from ptmq.data.folder import PREFIX, folder
from ptmq.data.imagenet import imagenet
from ptmq.data.images import DatasetSource, Images
from ptmq.models.backbone import Backbone, get_backbone, loaded

SPLITS = ("train", "heldout", "test")
DATASETS: dict[str, DatasetSource] = {
    "digits": digits.SOURCE,
    "cifar10": cifar10.SOURCE,
    "imagenet": imagenet("imagenet", resize=True, heldout=10_000),
    "imagenet_subset": imagenet("imagenet_subset", resize=False, heldout=0),  # published at about the crop's size
}
GROUP = "ptmq.datasets"  # of entry points: a dataset's name = "module:name" of a `DatasetSource`


def get_dataset(name: str) -> DatasetSource:
    """The dataset `name`: of the suite, a folder, of another package. Raises InputError for an unknown name."""
    if name.startswith(PREFIX):
        return folder(Path(name.removeprefix(PREFIX)).expanduser())
    if name in DATASETS:
        return DATASETS[name]
    points: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        points.setdefault(point.name, point)  # of two packages the first
    return loaded(points[one_of("dataset", name, [*DATASETS, *points, f"{PREFIX}PATH"])], DatasetSource)


def dataset_named(text: str) -> str:
    """The name of a dataset that is given by its name, or by a folder of images: folder:PATH, whole."""
    if text.startswith(PREFIX) or (Path(text).is_dir() and text not in DATASETS):
        return f"{PREFIX}{Path(text.removeprefix(PREFIX)).expanduser().resolve()}"
    return text


def data_folder(configured: str | None) -> Path:
    """The data folder: as configured, else PTMQ_DATA_DIR, else ./data."""
    return Path(configured or os.environ.get("PTMQ_DATA_DIR") or "data").expanduser()


def fetch(name: str, root: Path, offline: bool = False) -> dict[str, str]:
    """Make sure that a dataset is in `root`, downloading it where needed; returns the checked SHA-256 of its files.

    Raises InputError when it is absent and offline, or when a file is not the official one.
    """
    return get_dataset(name).fetch(root, offline)


def load(name: str, split: str, root: Path, backbone: Backbone) -> Images:
    """One split of a dataset, as the backbone wants it. `fetch` it first."""
    source = get_dataset(name)
    images = source.open(root, one_of("split", split, SPLITS), backbone)
    images.augmentation = source.augmentation
    return images


def open_images(
    backbone: str, split: str, data_dir: str | None, dataset: str | None = None
) -> tuple[Images, dict[str, str]]:
    """One split of a dataset (without a name the backbone's own), as the backbone wants it, and hashes of its files."""
    entry = get_backbone(backbone).complete()
    root = data_folder(data_dir)
    name = dataset or entry.dataset
    hashes = fetch(name, root, offline=True)
    return load(name, split, root, entry), hashes
