"""A folder of images as a dataset without code: `folder:PATH`, in the standard layout, each part known by its content.

`train/<class>/` holds training images, `val/<class>/` or `test/<class>/` those that results are measured on; where both
are there, `val` is what settings are chosen on. Classes are counted in the order of their sorted names, unless a list,
`train.txt` or `val.txt` with a line `path class` each, says which output of a network is meant.
"""

import os
from pathlib import Path

import torch

from ptmq.common.errors import InputError
from ptmq.data.content import content_sha256
from ptmq.data.imagenet import SUFFIXES, ImageFiles, read_list
from ptmq.data.images import DatasetSource, Images
from ptmq.models.backbone import Backbone

PREFIX = "folder:"
PARTS = ("train", "val", "test")
HELDOUT = 10  # one training image of so many is held out, where no part of the folder is


def folder(path: Path) -> DatasetSource:
    """The images of `path`, for any backbone that says how it wants photographs."""

    def open_files(root: Path, split: str, backbone: Backbone) -> Images:
        images = ImageFiles(files_of(path, split), backbone, resize=True)
        listed = any((path / f"{part}.txt").exists() for part in PARTS)
        images.classes = None if listed else len(classes_of(path))
        return images

    return DatasetSource(
        open_files, lambda root, offline: contents(path), None, {"shift": 28, "flip": True, "border": "edge"}
    )


def classes_of(root: Path) -> list[str]:
    """Names of the classes, sorted, of all parts together: a part that lacks one counts like the others."""
    folders = (root / part for part in PARTS if (root / part).is_dir())
    return sorted({entry.name for part in folders for entry in os.scandir(part) if entry.is_dir()})


def part_of(root: Path, part: str) -> list[tuple[Path, int]]:
    """Files and classes of root/part, listed or in the order of their names; none where it is not there."""
    return read_list(root, part) or [
        (file, label)
        for label, name in enumerate(classes_of(root))
        for file in sorted((root / part / name).glob("*"))
        if file.suffix.lower() in SUFFIXES
    ]


def files_of(root: Path, split: str) -> list[tuple[Path, int]]:
    """Files and classes of train, heldout or test. Raises InputError where the folder has none."""
    train, val, test = (part_of(root, part) for part in PARTS)
    heldout = val if test else []
    if not heldout:  # drawn once by a fixed seed
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(10)).tolist()
        count = len(train) // HELDOUT
        heldout, train = [train[i] for i in sorted(order[:count])], [train[i] for i in sorted(order[count:])]
    found = {"train": train, "heldout": heldout, "test": test or val}[split]
    if not found:
        wanted = {"train": "train/<class>/*.jpg", "test": "val/<class>/*.jpg or test/<class>/*.jpg"}
        wanted["heldout"] = f"val and test, or {HELDOUT} training images"
        raise InputError(f"folder {str(root)!r} has no images for {split}. It must have {wanted[split]}.")
    return found


def contents(root: Path) -> dict[str, str]:
    """One SHA-256 a part: of the names, the classes and the content of its files. Raises InputError without a part."""
    hashes = {f"{root.name}/{part}": content_sha256(root, files) for part in PARTS if (files := part_of(root, part))}
    if not hashes:
        raise InputError(
            f"folder {str(root)!r} has no images in the standard layout: train/<class>/*.jpg, and val/<class>/*.jpg or "
            "test/<class>/*.jpg."
        )
    return hashes
