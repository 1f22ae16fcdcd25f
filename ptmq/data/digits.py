"""Handwritten digits: bundled with scikit-learn, 1,797 images of 8 x 8 pixels."""

from pathlib import Path

import torch

from ptmq.common.errors import InputError
from ptmq.data.images import DatasetSource, Images, ImagesInMemory
from ptmq.models.backbone import Backbone


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


SOURCE = DatasetSource(_open_digits, lambda root, offline: {}, "digits", {"shift": 1, "flip": False, "border": "black"})
