"""Datasets and weights: fixed splits, hashes, and refusal of what is not what it claims to be."""

import pickle

import pytest
import torch
from conftest import ROOT

from ptmq.common.errors import InputError
from ptmq.common.files import save_tensors
from ptmq.data import datasets
from ptmq.models import checkpoints as weights
from ptmq.models.backbone import Checkpoint
from ptmq.models.zoo import BACKBONES


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


def write_cifar(folder):
    """A CIFAR-10 folder of the right names and the wrong content."""
    for name in datasets.CIFAR_FILES:
        path = folder / datasets.CIFAR_FOLDER / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"not CIFAR-10")


def test_offline_data_must_be_there(tmp_path):
    with pytest.raises(InputError, match="dataset 'cifar10' is not complete in .* and offline is true"):
        datasets.fetch("cifar10", tmp_path, offline=True)


def test_data_with_another_hash_is_refused(tmp_path):
    write_cifar(tmp_path)
    with pytest.raises(InputError, match="has SHA-256 .*, not the official f962466ef690d46b"):
        datasets.fetch("cifar10", tmp_path, offline=True)


def test_folders_come_from_the_profile_then_the_environment(monkeypatch):
    monkeypatch.setenv("PTMQ_DATA_DIR", "/env/data")
    monkeypatch.setenv("PTMQ_WEIGHTS_DIR", "/env/weights")
    assert str(datasets.data_folder(None)) == "/env/data" and str(weights.weights_folder(None)) == "/env/weights"
    assert str(datasets.data_folder("/mine")) == "/mine"
    monkeypatch.delenv("PTMQ_DATA_DIR")
    assert str(datasets.data_folder(None)) == "data"


def checkpoint_of(path, **changes) -> Checkpoint:
    from ptmq.common.files import sha256

    return Checkpoint(
        **({"file": path.name, "url": "https://example.org/w", "sha256": sha256(path), "source": "test"} | changes)
    )


def test_offline_weights_must_be_there(tmp_path):
    entry = BACKBONES["resnet20"].checkpoint
    with pytest.raises(InputError, match="weights 'resnet20-12fca82f.th' are not in .* get them from https://"):
        weights.fetch(entry, tmp_path, offline=True)


def test_weights_with_another_hash_are_refused(tmp_path):
    (tmp_path / "resnet20-12fca82f.th").write_bytes(b"truncated")
    with pytest.raises(InputError, match="have SHA-256 .*, not 12fca82f0bebc413"):
        weights.fetch(BACKBONES["resnet20"].checkpoint, tmp_path, offline=True)


class Malicious:
    def __reduce__(self):
        import os

        return os.system, ("touch executed",)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.pt"
    path.write_bytes(pickle.dumps({"state_dict": Malicious()}))
    with pytest.raises(InputError, match="are refused: not a plain file of tensors"):
        weights.read_checkpoint(path, checkpoint_of(path))
    torch.save({"state_dict": Malicious()}, path)
    with pytest.raises(InputError, match="are refused: not a plain file of tensors"):
        weights.read_checkpoint(path, checkpoint_of(path))
    assert not (tmp_path / "executed").exists()


def test_prefixes_are_renamed(tmp_path):
    path = tmp_path / "w.pt"
    torch.save({"state_dict": {"module.linear.bias": torch.ones(2), "module.conv1.weight": torch.ones(1)}}, path)
    state = weights.read_checkpoint(
        path, checkpoint_of(path, entry="state_dict", rename=BACKBONES["resnet20"].checkpoint.rename)
    )
    assert set(state) == {"fc.bias", "conv1.weight"}


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(InputError, match="do not fit the backbone: .* They belong to another architecture"):
        weights.load_state(BACKBONES["resnet20"].network(), BACKBONES["resnet56"].network().state_dict(), "w")


def test_nan_weights_are_refused():
    state = BACKBONES["digits_resnet"].network().state_dict()
    state["layer1.0.conv1.weight"][0] = torch.nan
    with pytest.raises(InputError, match="hold NaN or infinity in 'layer1.0.conv1.weight'"):
        weights.load_state(BACKBONES["digits_resnet"].network(), state, "w")


@pytest.mark.parametrize("name", [n for n, b in BACKBONES.items() if b.checkpoint])
def test_checkpoints_name_their_hash_and_source(name):
    entry = BACKBONES[name].checkpoint
    digest = entry.sha256 or entry.tensors_sha256
    assert entry.source and (set(digest) <= set("0123456789abcdef")) and len(digest) in (8, 64, 0)
    if len(digest) == 8:  # all that its publisher gives, in the file's name
        assert digest in entry.file and entry.url.endswith(entry.file)
    if not digest:
        assert name == "vit_base_patch16_224", "the one whose publisher gives no hash"


def test_a_checkpoint_is_known_by_its_tensors_whatever_file_holds_them(tmp_path):
    state = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.zeros(2)}
    entry = Checkpoint("a.safetensors", None, "", "a source", tensors_sha256=weights.tensors_sha256(state))
    save_tensors(tmp_path / "a.safetensors", state, None)
    torch.save(state, tmp_path / "a.pth")
    for name in ("a.safetensors", "a.pth"):
        read = weights.read_checkpoint(tmp_path / name, entry)
        assert all(torch.equal(read[key], state[key]) for key in state)
    state["bias"] += 1
    save_tensors(tmp_path / "a.safetensors", state, None)
    with pytest.raises(InputError, match="the tensors of .* have SHA-256 .* The file is another one"):
        weights.read_checkpoint(tmp_path / "a.safetensors", entry)


def test_a_file_that_has_to_be_brought_is_asked_for(tmp_path):
    with pytest.raises(InputError, match="cannot be downloaded .* Point weights_dir"):
        weights.fetch(BACKBONES["mobilenet_v2_folded"].checkpoint, tmp_path)
