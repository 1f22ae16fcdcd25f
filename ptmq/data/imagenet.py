"""ImageNet from a folder: files are decoded when a batch is read, as the backbone's checkpoint wants them.

Two layouts: lists, `train.txt` and `val.txt` with a line `path class` each; or the standard folders,
`train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, whose sorted names are the classes.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ptmq.common.errors import InputError
from ptmq.data.content import content_sha256
from ptmq.data.images import DatasetSource, Images
from ptmq.models.backbone import Backbone

FOLDERS = {"train": "train", "heldout": "train", "test": "val"}
SUFFIXES = (".jpeg", ".jpg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class ImageFiles(Images):
    """Image files, cropped to (3, size, size), uint8.

    resize: whether the shorter side is brought to the checkpoint's size before the crop; files that were resized
    when they were published are cropped only.
    """

    def __init__(self, files: Sequence[tuple[Path, int]], backbone: Backbone, resize: bool):
        super().__init__(torch.tensor([label for _, label in files]), backbone.mean, backbone.std)
        self.paths = [path for path, _ in files]
        if backbone.preprocessing is None:
            raise InputError("a backbone of image files must say how it wants them. Give its entry preprocessing=...")
        self.preprocessing, self.resize = backbone.preprocessing, resize

    def pixels(self, index: Tensor) -> Tensor:
        """Decoded with a thread for every core."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.stack(list(pool.map(self.read, index.tolist())))

    def read(self, index: int) -> Tensor:
        """One image, cropped, uint8 (3, size, size). Raises InputError where the file is no image."""
        from torchvision.transforms.v2 import functional as transforms  # seconds, for who reads image files alone
        from torchvision.transforms.v2.functional import InterpolationMode

        wanted, interpolation = self.preprocessing, InterpolationMode(self.preprocessing.interpolation)
        try:
            with Image.open(self.paths[index]) as file:
                image = file.convert("RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise InputError(f"image {str(self.paths[index])!r} cannot be read: {error}. Get it again.") from None
        if self.resize:
            sides = [wanted.resize] * (2 if wanted.squash else 1)
            image = transforms.resize(image, sides, interpolation, antialias=True)
        elif min(image.size) < wanted.size:  # published smaller than this network wants them
            image = transforms.resize(image, [wanted.size], interpolation, antialias=True)
        return transforms.pil_to_tensor(transforms.center_crop(image, [wanted.size, wanted.size]))


def files_of(root: Path, split: str, heldout: int) -> list[tuple[Path, int]]:
    """Files and classes of a split; heldout: how many training images are set apart, drawn once by a fixed seed.

    Raises InputError where the folder is in neither layout.
    """
    found = read_list(root, FOLDERS[split]) or read_folders(root / FOLDERS[split])
    if not found:
        raise InputError(
            f"folder {str(root)!r} has neither {FOLDERS[split]}.txt (lines 'path class') nor "
            f"{FOLDERS[split]}/<wnid>/*.JPEG. Point data_dir (or PTMQ_DATA_DIR) to the folder above it."
        )
    if split == "test" or not heldout:
        return found
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(10)).tolist()
    return [found[i] for i in (order[:heldout] if split == "heldout" else order[heldout:])]


def read_list(root: Path, name: str) -> list[tuple[Path, int]]:
    """The files of root/name.txt; none without it."""
    path = root / f"{name}.txt"
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        file, _, label = line.rpartition(" ")
        if not file or not label.isdigit():
            raise InputError(f"{path}, line {number}, must be 'path class', the class a number from 0. Got {line!r}.")
        found.append((root / file, int(label)))
    return found


def read_folders(folder: Path) -> list[tuple[Path, int]]:
    """The files of folder/<class>/, classes in the order of their sorted names."""
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    return [
        (Path(file.path), label)
        for label, name in enumerate(names)
        for file in sorted(os.scandir(folder / name), key=lambda entry: entry.name)
        if file.name.lower().endswith(SUFFIXES)
    ]


def contents(root: Path) -> dict[str, str]:
    """One SHA-256 a part: of the names, the classes and the content of its files."""
    return {
        f"{root.name}/{folder}": content_sha256(root, files_of(root, split, heldout=0))
        for split, folder in FOLDERS.items()
        if split != "heldout"  # images of train
    }


def imagenet(folder: str, resize: bool, heldout: int) -> DatasetSource:
    """ImageNet's classes below `folder`; resize: as for `ImageFiles` · heldout: as for `files_of`."""

    def fetch(root: Path, offline: bool) -> dict[str, str]:
        return contents(root / folder)

    def open_files(root: Path, split: str, backbone: Backbone) -> Images:
        if split == "heldout" and not heldout:
            raise InputError(f"dataset {folder!r} has no held-out images. Choose settings on another dataset.")
        files = files_of(root / folder, split, heldout)
        return ImageFiles(files, backbone, resize)

    return DatasetSource(open_files, fetch, "imagenet", {"shift": 28, "flip": True, "border": "edge"})
