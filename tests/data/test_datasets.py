"""Datasets: fixed splits that are apart, hashes, and refusal of what is not what it claims to be."""

import pickle

import numpy as np
import pytest
import torch

from ptmq.common.errors import InputError
from ptmq.common.files import sha256
from ptmq.data import cifar10, datasets
from ptmq.data.images import ImagesInMemory
from ptmq.models.zoo import BACKBONES
from tests.toys import ROOT


def test_digits_splits_are_fixed_and_apart():
    backbone = BACKBONES["digits_resnet"]
    parts = {split: datasets.load("digits", split, ROOT, backbone) for split in datasets.SPLITS}
    assert {split: len(images) for split, images in parts.items()} == {"train": 1000, "heldout": 200, "test": 597}
    seen = [tuple(image.flatten().tolist()) for images in parts.values() for image in images.images]
    assert len(set(seen)) > 1780, "splits share images"  # the set itself has a few equal images
    again = datasets.load("digits", "test", ROOT, backbone)
    assert torch.equal(again.images, parts["test"].images)
    x, y = parts["train"].batch(torch.tensor([0, 5]))
    assert x.shape == (2, 1, 8, 8) and y.shape == (2,)
    torch.testing.assert_close(parts["train"][5][0], x[1])


def write_cifar(folder, content=b"not CIFAR-10"):
    """A CIFAR-10 folder of the right names and the wrong content."""
    for name in cifar10.CIFAR_FILES:
        path = folder / cifar10.CIFAR_FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


@pytest.mark.parametrize("get", [
    lambda root: datasets.fetch("cifar10", root, offline=True),
    lambda root: datasets.open_images("resnet20", "test", str(root)),  # nobody said offline: a computation never downloads
])  # fmt: skip
def test_what_is_absent_and_not_downloaded_is_said_with_both_ways_out(tmp_path, get):
    with pytest.raises(
        InputError, match="'cifar10' is not complete in .*Point data_dir .* or have it downloaded: "
    ) as told:
        get(tmp_path)
    assert "offline is" not in str(told.value)


def test_a_failed_download_says_how_to_give_the_files(tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.CIFAR10.download", no_network)
    said = "could not be downloaded: Name or service not known. Point data_dir .* to a folder that holds"
    with pytest.raises(InputError, match=said):
        datasets.fetch("cifar10", tmp_path)


def test_data_with_another_hash_is_refused(tmp_path):
    write_cifar(tmp_path)
    with pytest.raises(InputError, match="has SHA-256 .*, not the official f962466ef690d46b"):
        datasets.fetch("cifar10", tmp_path, offline=True)


def test_cifar_splits_are_fixed_and_apart(tmp_path, monkeypatch):
    """Of files of the official form with fewer images, whose first pixels tell which they are."""
    monkeypatch.setattr(cifar10, "CIFAR_HELDOUT", 500)
    number = 0
    folder = tmp_path / cifar10.CIFAR_FOLDER
    folder.mkdir()
    for name in cifar10.CIFAR_FILES:
        content = {"label_names": [str(i) for i in range(10)]}
        if name != "batches.meta":
            data = np.zeros((1000, 3072), dtype=np.uint8)
            data[:, :2] = np.stack([np.arange(number, number + 1000) >> shift & 255 for shift in (0, 8)], 1)
            content = {"data": data, "labels": [i % 10 for i in range(1000)]}
            number += 1000
        (folder / name).write_bytes(pickle.dumps(content))
    digests = {name: sha256(folder / name) for name in cifar10.CIFAR_FILES}
    monkeypatch.setattr(cifar10, "CIFAR_FILES", digests)
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    assert datasets.fetch("cifar10", tmp_path, offline=True) == {
        f"{cifar10.CIFAR_FOLDER}/{name}": digest for name, digest in digests.items()
    }
    backbone = BACKBONES["resnet20"]
    numbers = {}
    for split in datasets.SPLITS:
        images = datasets.load("cifar10", split, tmp_path, backbone).images
        numbers[split] = {low | high << 8 for low, high in images[:, 0, 0, :2].tolist()}
    assert {split: len(found) for split, found in numbers.items()} == {"train": 4500, "heldout": 500, "test": 1000}
    assert not numbers["train"] & numbers["heldout"] and numbers["test"] == set(range(5000, 6000))


def test_folders_come_from_the_profile_then_the_environment(monkeypatch):
    monkeypatch.setenv("PTMQ_DATA_DIR", "/env/data")
    assert str(datasets.data_folder(None)) == "/env/data"
    assert str(datasets.data_folder("/mine")) == "/mine"
    monkeypatch.delenv("PTMQ_DATA_DIR")
    assert str(datasets.data_folder(None)) == "data"


@pytest.mark.parametrize("name, split, message", [
    ("digit", "test", "dataset 'digit' is unknown. Did you mean 'digits'"),
    ("digits", "tset", "split 'tset' is unknown. Did you mean 'test'"),
])  # fmt: skip
def test_unknown_names_are_said(name, split, message):
    with pytest.raises(InputError, match=message):
        datasets.load(name, split, ROOT, BACKBONES["digits_resnet"])


def test_pixels_are_scaled_and_normalised_whatever_their_type():
    pixels = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).view(2, 3, 2, 2) * 10
    mean, std, labels = (0.1, 0.2, 0.3), (0.5, 0.4, 0.2), torch.tensor([1, 0])
    whole = ImagesInMemory(pixels, labels, mean, std)
    scaled = ImagesInMemory(pixels.float() / 255, labels, mean, std)
    (x, y), (same, _) = (images.batch(torch.tensor([1, 0])) for images in (whole, scaled))
    torch.testing.assert_close(x, same)
    torch.testing.assert_close(x[0, 2], (pixels[1, 2].float() / 255 - 0.3) / 0.2)
    assert y.tolist() == [0, 1]
    torch.testing.assert_close(whole.black.flatten(), torch.tensor([-0.2, -0.5, -1.5]))


def test_images_come_with_the_hashes_and_the_augmentation_of_their_dataset():
    images, hashes = datasets.open_images("digits_resnet", "train", None)
    assert images.augmentation == datasets.DATASETS["digits"].augmentation
    assert hashes == datasets.fetch("digits", ROOT) and set(hashes) == {"digits"}
    same, _ = datasets.open_images("digits_resnet", "train", None, "digits")
    assert torch.equal(images.images, same.images)
