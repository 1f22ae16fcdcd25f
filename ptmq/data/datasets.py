"""Datasets: labelled images in three fixed splits, from the package, from a folder or downloaded.

A backbone belongs to one dataset; a dataset with the same classes, such as a subset, serves it, too.

`train` is for training and calibration, `heldout` (training images too, apart) for choosing settings, `test`
only for the numbers that are reported.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ptmq.common.errors import InputError, one_of
from ptmq.common.files import sha256
from ptmq.models.backbones import Backbone
from ptmq.training.augmentation import augment

SPLITS = ("train", "heldout", "test")


class Images(Dataset):
    """Images and their labels (count,); how the pixels are read is the subclass's part.

    Items are normalised float images (channels, height, width) and int labels; a batch is read at once.
    """

    def __init__(self, labels: Tensor, mean: Sequence[float], std: Sequence[float]):
        self.labels = labels
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.augmentation: dict[str, Any] = {}  # what training does to them: shift, flip, border of `Training`

    def __len__(self) -> int:
        return len(self.labels)

    def pixels(self, index: Tensor) -> Tensor:
        """Images (len(index), channels, height, width), uint8 or float in 0..1."""
        raise NotImplementedError

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (len(index), channels, height, width) and labels (len(index),)."""
        pixels = self.pixels(index)
        scaled = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
        return (scaled - self.mean) / self.std, self.labels[index]

    def augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Normalised images (len(index), channels, height, width) as training sees them."""
        return augment(self.batch(index)[0], **self.augmentation, black=self.black, generator=generator)

    @property
    def black(self) -> Tensor:
        """A black pixel, normalised, (channels, 1, 1)."""
        return -self.mean / self.std

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.batch(torch.tensor([index]))
        return image[0], int(label)


class ImagesInMemory(Images):
    """Images that are one tensor (count, channels, height, width), uint8 or float in 0..1."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]):
        super().__init__(labels, mean, std)
        self.images = images

    def pixels(self, index: Tensor) -> Tensor:
        return self.images[index]


@dataclass(frozen=True)
class DatasetSource:
    """One dataset.

    open(root, split, backbone): its images as the backbone wants them · fetch(root, offline): makes sure that they are
    in `root` and gives the SHA-256 of what it checked · classes: the dataset whose backbones it serves · augmentation:
    how images are shifted and flipped where labels are trained on.
    """

    open: Callable[[Path, str, Backbone], Images]
    fetch: Callable[[Path, bool], dict[str, str]]
    classes: str
    augmentation: dict[str, Any]


# ---------------------------------------------------------------- digits: bundled with scikit-learn
def _open_digits(root: Path, split: str, backbone: Backbone) -> Images:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise InputError(
            "dataset 'digits' comes with scikit-learn, which is not installed. pip install scikit-learn."
        ) from None
    digits = load_digits()
    index = range(len(digits.target))
    rest, test = train_test_split(index, test_size=597, stratify=digits.target, random_state=0)
    train, heldout = train_test_split(rest, test_size=200, stratify=digits.target[rest], random_state=0)
    chosen = {"train": train, "heldout": heldout, "test": test}[split]
    images = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32).unsqueeze(1)  # (count, 1, 8, 8)
    return ImagesInMemory(images, torch.tensor(digits.target[chosen]), backbone.mean, backbone.std)


# ---------------------------------------------------------------- CIFAR-10
CIFAR_FOLDER = "cifar-10-batches-py"
CIFAR_FILES = {
    "batches.meta": "f962466ef690d46b226450fb9aadc74ba4bc64a76aa526b5827fe4bc5c7125cb",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}
CIFAR_HELDOUT = 5000  # of the 50,000 training images, drawn once by a fixed seed


def _open_cifar10(root: Path, split: str, backbone: Backbone) -> Images:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=split != "test")
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (count, 3, 32, 32), uint8
    labels = torch.tensor(data.targets)
    if split != "test":
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(10))
        chosen = order[:CIFAR_HELDOUT] if split == "heldout" else order[CIFAR_HELDOUT:]
        images, labels = images[chosen], labels[chosen]
    return ImagesInMemory(images, labels, backbone.mean, backbone.std)


def _fetch_cifar10(root: Path, offline: bool) -> dict[str, str]:
    if not all((root / CIFAR_FOLDER / name).exists() for name in CIFAR_FILES):
        _download_cifar10(root, offline)
    for name, expected in CIFAR_FILES.items():
        path = root / CIFAR_FOLDER / name
        found = sha256(path)
        if found != expected:
            raise InputError(
                f"file {str(path)!r} has SHA-256 {found[:16]}..., not the official {expected[:16]}... "
                "Delete it and run again."
            )
    return {f"{CIFAR_FOLDER}/{name}": digest for name, digest in CIFAR_FILES.items()}


def _download_cifar10(root: Path, offline: bool) -> None:
    if offline:
        raise InputError(
            f"dataset 'cifar10' is not complete in {str(root / CIFAR_FOLDER)!r} and offline is true. "
            "Point data_dir (or PTMQ_DATA_DIR) to a folder that holds cifar-10-batches-py, or set offline: false."
        )
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(root, download=True)
    except Exception as error:
        raise InputError(
            f"dataset 'cifar10' could not be downloaded: {error}. "
            "Point data_dir (or PTMQ_DATA_DIR) to a folder that holds cifar-10-batches-py."
        ) from error


# ---------------------------------------------------------------- ImageNet: a folder that the user has
def _imagenet(folder: str, resize: bool, heldout: int) -> DatasetSource:
    """ImageNet's classes below `folder`; resize and heldout as in ptmq/data/imagenet.py."""

    def fetch(root: Path, offline: bool) -> dict[str, str]:
        from ptmq.data.imagenet import listing_sha256

        return listing_sha256(root / folder)

    def open_files(root: Path, split: str, backbone: Backbone) -> Images:
        from ptmq.data.imagenet import ImageFiles, files_of

        if split == "heldout" and not heldout:
            raise InputError(f"dataset {folder!r} has no held-out images. Choose settings on another dataset.")
        files = files_of(root / folder, split, heldout)
        return ImageFiles(files, backbone, resize)

    return DatasetSource(open_files, fetch, "imagenet", {"shift": 28, "flip": True, "border": "edge"})


DATASETS: dict[str, DatasetSource] = {
    "digits": DatasetSource(
        _open_digits, lambda root, offline: {}, "digits", {"shift": 1, "flip": False, "border": "black"}
    ),
    "cifar10": DatasetSource(_open_cifar10, _fetch_cifar10, "cifar10", {"shift": 4, "flip": True, "border": "black"}),
    "imagenet": _imagenet("imagenet", resize=True, heldout=10_000),
    "imagenet_subset": _imagenet("imagenet_subset", resize=False, heldout=0),  # published at about the crop's size
}


def data_folder(configured: str | None) -> Path:
    """The data folder: as configured, else PTMQ_DATA_DIR, else ./data."""
    return Path(configured or os.environ.get("PTMQ_DATA_DIR") or "data").expanduser()


def fetch(name: str, root: Path, offline: bool = False) -> dict[str, str]:
    """Make sure that a dataset is in `root`, downloading it where needed; returns the checked SHA-256 of its files.

    Raises InputError when it is absent and offline, or when a file is not the official one.
    """
    return DATASETS[one_of("dataset", name, DATASETS)].fetch(root, offline)


def load(name: str, split: str, root: Path, backbone: Backbone) -> Images:
    """One split of a dataset, as the backbone wants it. `fetch` it first."""
    source = DATASETS[one_of("dataset", name, DATASETS)]
    images = source.open(root, one_of("split", split, SPLITS), backbone)
    images.augmentation = source.augmentation
    return images
