"""Checkpoints: known by their hash, read as tensors alone, refused where they are not what they claim to be."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors, sha256
from ptmq.models import checkpoints as weights
from ptmq.models.backbone import Checkpoint, get_backbone
from ptmq.models.zoo import BACKBONES


def checkpoint_of(path, **changes) -> Checkpoint:
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


def test_a_public_file_becomes_the_networks_own_weights(tmp_path, monkeypatch):
    """Whatever prefix its keys have; nothing else is taken."""
    network = get_backbone("digits_resnet").network()
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "public.pt")
    entry = checkpoint_of(tmp_path / "public.pt", entry="state_dict", rename=(("module.", ""),))
    monkeypatch.setattr(weights, "get_backbone", lambda name: replace(get_backbone(name), checkpoint=entry))
    weights.convert("digits_resnet", str(tmp_path), True, tmp_path / "out.safetensors")
    own, info = load_tensors(tmp_path / "out.safetensors")
    assert own.keys() == network.state_dict().keys()
    assert all(torch.equal(own[key], value) for key, value in network.state_dict().items())
    assert info["sha256"] == sha256(tmp_path / "public.pt") and info["backbone"] == "digits_resnet"
    loaded = weights.load_network("digits_resnet", tmp_path / "out.safetensors")
    assert not loaded.training


def test_folders_come_from_the_profile_then_the_environment(monkeypatch):
    monkeypatch.setenv("PTMQ_WEIGHTS_DIR", "/env/weights")
    assert str(weights.weights_folder(None)) == "/env/weights"
    assert str(weights.weights_folder("/mine")) == "/mine"
    monkeypatch.delenv("PTMQ_WEIGHTS_DIR")
    assert str(weights.weights_folder(None)) == "data/weights"
