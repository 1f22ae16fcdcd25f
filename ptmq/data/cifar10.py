"""CIFAR-10: downloaded or from a folder, each file known by its hash."""

from pathlib import Path

import torch

from ptmq.common.errors import InputError
from ptmq.common.files import sha256
from ptmq.data.images import DatasetSource, Images, ImagesInMemory
from ptmq.models.backbone import Backbone

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
            f"dataset 'cifar10' is not complete in {str(root / CIFAR_FOLDER)!r}. Point data_dir (or PTMQ_DATA_DIR) to "
            f"a folder that holds {CIFAR_FOLDER}, or have it downloaded: python -m ptmq data --dataset cifar10 --out "
            "data.json, in a profile offline: false."
        )
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(root, download=True)
    except Exception as error:
        raise InputError(
            f"dataset 'cifar10' could not be downloaded: {error}. "
            "Point data_dir (or PTMQ_DATA_DIR) to a folder that holds cifar-10-batches-py."
        ) from error


SOURCE = DatasetSource(_open_cifar10, _fetch_cifar10, "cifar10", {"shift": 4, "flip": True, "border": "black"})
