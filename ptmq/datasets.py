"""Datasets: labelled images in three fixed splits, from the package, from a folder or downloaded.

`train` is for training and calibration, `heldout` (training images too, apart) for choosing settings, `test`
only for the numbers that are reported.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ptmq.errors import InputError, one_of
from ptmq.files import sha256

SPLITS = ("train", "heldout", "test")


class Images(Dataset):
    """Images (count, channels, height, width), uint8 or float in 0..1, and labels (count,), in memory.

    Items are normalised float images and int labels; a batch is read at once.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]):
        self.images, self.labels = images, labels
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised images (len(index), channels, height, width) and labels (len(index),)."""
        images = self.images[index]
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        return (scaled - self.mean) / self.std, self.labels[index]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.batch(torch.tensor([index]))
        return image[0], int(label)


@dataclass(frozen=True)
class DatasetSource:
    """One dataset: `read(root, split)` gives images and labels, `files` the hashes of what it reads."""

    read: Callable[[Path, str], tuple[Tensor, Tensor]]
    fetch: Callable[[Path, bool], None]
    files: dict[str, str]  # path under the data folder -> SHA-256


# ---------------------------------------------------------------- digits: bundled with scikit-learn
def _read_digits(root: Path, split: str) -> tuple[Tensor, Tensor]:
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
    return images, torch.tensor(digits.target[chosen])


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


def _read_cifar10(root: Path, split: str) -> tuple[Tensor, Tensor]:
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=split != "test")
    images = torch.from_numpy(data.data).permute(0, 3, 1, 2)  # (count, 3, 32, 32), uint8
    labels = torch.tensor(data.targets)
    if split == "test":
        return images, labels
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(10))
    chosen = order[:CIFAR_HELDOUT] if split == "heldout" else order[CIFAR_HELDOUT:]
    return images[chosen], labels[chosen]


def _fetch_cifar10(root: Path, offline: bool) -> None:
    if all((root / CIFAR_FOLDER / name).exists() for name in CIFAR_FILES):
        return
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


DATASETS: dict[str, DatasetSource] = {
    "digits": DatasetSource(_read_digits, lambda root, offline: None, {}),
    "cifar10": DatasetSource(
        _read_cifar10, _fetch_cifar10, {f"{CIFAR_FOLDER}/{name}": digest for name, digest in CIFAR_FILES.items()}
    ),
}


def data_folder(configured: str | None) -> Path:
    """The data folder: as configured, else PTMQ_DATA_DIR, else ./data."""
    return Path(configured or os.environ.get("PTMQ_DATA_DIR") or "data").expanduser()


def fetch(name: str, root: Path, offline: bool = False) -> dict[str, str]:
    """Make sure that a dataset is in `root`, downloading it where needed; returns the checked SHA-256 of its files.

    Raises InputError when it is absent and offline, or when a file is not the official one.
    """
    source = DATASETS[one_of("dataset", name, DATASETS)]
    source.fetch(root, offline)
    for file, expected in source.files.items():
        found = sha256(root / file)
        if found != expected:
            raise InputError(
                f"file {str(root / file)!r} has SHA-256 {found[:16]}..., not the official {expected[:16]}... "
                "Delete it and run again."
            )
    return dict(source.files)


def load(name: str, split: str, root: Path, mean: Sequence[float], std: Sequence[float]) -> Images:
    """One split of a dataset, normalised by mean and std per channel. `fetch` it first."""
    source = DATASETS[one_of("dataset", name, DATASETS)]
    images, labels = source.read(root, one_of("split", split, SPLITS))
    return Images(images, labels, mean, std)
