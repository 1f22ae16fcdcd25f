"""Handwritten digits: bundled with scikit-learn, 1,797 images of 8 x 8 pixels."""

import hashlib
from pathlib import Path
from typing import Any

import torch

from ptmq.common.errors import InputError
from ptmq.data.images import DatasetSource, Images, ImagesInMemory
from ptmq.models.backbone import Backbone


def _digits() -> Any:
    """Images (1797, 8, 8) of 0 to 16 and classes, as scikit-learn has them."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "dataset 'digits' comes with scikit-learn, which is not installed. pip install scikit-learn."
        ) from None
    return load_digits()


def _open_digits(root: Path, split: str, backbone: Backbone) -> Images:
    digits = _digits()
    from sklearn.model_selection import train_test_split

    index = range(len(digits.target))
    rest, test = train_test_split(index, test_size=597, stratify=digits.target, random_state=0)
    train, heldout = train_test_split(rest, test_size=200, stratify=digits.target[rest], random_state=0)
    chosen = {"train": train, "heldout": heldout, "test": test}[split]
    images = torch.tensor(digits.images[chosen] / 16, dtype=torch.float32).unsqueeze(1)  # (count, 1, 8, 8)
    return ImagesInMemory(images, torch.tensor(digits.target[chosen]), backbone.mean, backbone.std)


def _hash_digits(root: Path, offline: bool) -> dict[str, str]:
    """Of the pixels and the classes, a byte each: another version of scikit-learn may bundle them otherwise."""
    digits = _digits()
    content = digits.images.astype("uint8").tobytes() + digits.target.astype("uint8").tobytes()
    return {"digits": hashlib.sha256(content).hexdigest()}


SOURCE = DatasetSource(_open_digits, _hash_digits, "digits", {"shift": 1, "flip": False, "border": "black"})
