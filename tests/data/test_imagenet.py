"""ImageNet from a folder: both layouts, splits, preprocessing, and what a mistake is told. The images are made here."""

import numpy as np
import pytest
import torch
from PIL import Image

from ptmq.common.errors import InputError
from ptmq.data import datasets
from ptmq.data.imagenet import ImageFiles, contents, files_of
from ptmq.models.backbone import Preprocessing
from ptmq.models.zoo import BACKBONES

RESNET = BACKBONES["resnet18"]


def picture(path, width: int = 300, height: int = 260, value: int = 100) -> None:
    """A picture whose centre differs from its border."""
    pixels = np.full((height, width, 3), value, dtype=np.uint8)
    pixels[height // 2 - 5 : height // 2 + 5, width // 2 - 5 : width // 2 + 5] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def lists(tmp_path):
    """A folder with lists; the classes of val are not those that a scan of its folders would give."""
    root = tmp_path / "imagenet_subset"
    for split, classes in (("train", (0, 1, 2)), ("val", (0, 2))):
        lines = []
        for label in classes:
            file = f"{split}/n{label}/one file.png"
            picture(root / file, value=50 * label)
            lines.append(f"{file} {label}")
        (root / f"{split}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "imagenet"
    for split in ("train", "val"):
        for number, name in enumerate(("n01", "n02", "n03")):
            for image in ("b.JPEG", "a.JPEG"):
                picture(root / split / name / image, value=40 * number)
    return tmp_path


def test_a_list_gives_files_and_classes(lists):
    images = datasets.load("imagenet_subset", "test", lists, RESNET)
    assert images.labels.tolist() == [0, 2] and len(images) == 2
    x, y = images.batch(torch.tensor([1]))
    assert x.shape == (1, 3, 224, 224) and y.tolist() == [2]
    expected = [(100 / 255 - mean) / std for mean, std in zip(RESNET.mean, RESNET.std, strict=True)]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected))
    torch.testing.assert_close(images[1][0], x[0])


def test_the_standard_folders_give_sorted_classes_and_files(folders):
    files = files_of(folders / "imagenet", "test", 0)
    assert [(path.parent.name, path.name, label) for path, label in files] == [
        (name, image, label) for label, name in enumerate(("n01", "n02", "n03")) for image in ("a.JPEG", "b.JPEG")
    ]


def test_held_out_images_are_apart_from_those_of_training(folders):
    root = folders / "imagenet"
    heldout, train = files_of(root, "heldout", 2), files_of(root, "train", 2)
    assert len(heldout) == 2 and len(train) == 4 and not set(heldout) & set(train)
    assert heldout == files_of(root, "heldout", 2)


@pytest.mark.parametrize("resize, centre", [(True, 224), (False, 224)])
def test_the_crop_is_the_centre(tmp_path, resize, centre):
    picture(tmp_path / "wide.png", width=600, height=300)
    backbone = type("B", (), {"mean": (0,) * 3, "std": (1,) * 3, "preprocessing": Preprocessing(size=224, resize=256)})
    x, _ = ImageFiles([(tmp_path / "wide.png", 0)], backbone, resize).batch(torch.tensor([0]))
    assert x.shape[-2:] == (centre, centre) and x[0, 0, 112, 112] == 1
    bright = int((x[0, 0, 112] > 0.9).sum())  # ten pixels of 600 x 300, eight or nine once 300 became 256
    assert bright == 10 if not resize else 7 <= bright <= 9


def test_the_hash_is_of_names_classes_and_content(lists):
    root = lists / "imagenet_subset"
    before = contents(root)
    assert set(before) == {"imagenet_subset/train", "imagenet_subset/val"} and contents(root) == before
    picture(root / "val/n0/one file.png", value=9)
    another = contents(root)
    assert [before[part] == another[part] for part in before] == [True, False]
    (root / "val.txt").write_text("val/n0/one file.png 1\n")
    assert contents(root)["imagenet_subset/val"] not in (before["imagenet_subset/val"], another["imagenet_subset/val"])


@pytest.mark.parametrize("damage, message", [
    (lambda root: (root / "val.txt").write_text("val/x.png one\n"), r"val.txt, line 1, must be 'path class', the class a number from 0. Got 'val/x.png one'."),
    (lambda root: (root / "val.txt").unlink(), None),  # its folders serve
    (lambda root: (root / "val/n0/one file.png").write_bytes(b"no image"), "cannot be read"),
])  # fmt: skip
def test_damage_is_said(lists, damage, message):
    damage(lists / "imagenet_subset")
    if message is None:
        assert len(datasets.load("imagenet_subset", "test", lists, RESNET)) == 2
        return
    with pytest.raises(InputError, match=message):
        datasets.load("imagenet_subset", "test", lists, RESNET).batch(torch.tensor([0]))


def test_an_absent_folder_is_said(tmp_path):
    with pytest.raises(InputError, match=r"has neither train.txt .* nor train/<wnid>/\*.JPEG. Point data_dir"):
        datasets.fetch("imagenet", tmp_path)


def test_a_subset_has_nothing_held_out(lists):
    with pytest.raises(InputError, match="dataset 'imagenet_subset' has no held-out images"):
        datasets.load("imagenet_subset", "heldout", lists, RESNET)
