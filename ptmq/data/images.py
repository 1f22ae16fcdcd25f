"""Labelled images as the suite reads them, and where a dataset comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ptmq.models.backbone import Backbone


class Images(Dataset):
    """Images and their labels (count,); how the pixels are read is the subclass's part.

    Items are normalised float images (channels, height, width) and int labels; a batch is read at once.
    """

    def __init__(self, labels: Tensor, mean: Sequence[float], std: Sequence[float]):
        self.labels = labels
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.augmentation: dict[str, Any] = {}  # what training does to them: shift, flip, border of `Training`
        self.classes: int | None = None  # as many as a network must have outputs; None where that is known

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


class PreparedImages(Images):
    """Images (count, ...) that are as the network wants them already, without labels."""

    def __init__(self, images: Tensor):
        super().__init__(torch.full((len(images),), -1), (0.0,), (1.0,))
        self.images = images

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


@dataclass(frozen=True)
class DatasetSource:
    """One dataset.

    open(root, split, backbone): its images as the backbone wants them · fetch(root, offline): makes sure that they are
    in `root` and gives the SHA-256 of what it checked · classes: the dataset whose backbones it serves, None for
    all · augmentation: how images are shifted and flipped where labels are trained on.
    """

    open: Callable[[Path, str, Backbone], Images]
    fetch: Callable[[Path, bool], dict[str, str]]
    classes: str | None
    augmentation: dict[str, Any]
