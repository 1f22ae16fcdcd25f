"""A model on disk is the model, whoever builds it anew; damage is refused."""

import json

import pytest
import torch

from ptmq.common.errors import InputError
from ptmq.network.serialization import DESCRIPTION, TENSORS, load_model, save_model
from tests.toys import GROUPS, W3, logits, searched_model, toy_model

SHAPE = {"backbone": "toy"}


@pytest.fixture
def folder(images, tmp_path):
    save_model(tmp_path, searched_model(images), SHAPE, {"note": 1})
    return tmp_path


def test_it_is_loaded_bit_for_bit_and_frozen(images, folder):
    asked = []
    loaded, info = load_model(folder, lambda shape: asked.append(shape) or toy_model())
    assert asked == [SHAPE] and info == {"model": SHAPE, "note": 1}
    saved = searched_model(images)
    for width in GROUPS.widths:
        assert torch.equal(logits(loaded, images, width), logits(saved, images, width))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


@pytest.mark.parametrize("damage, message", [
    (lambda d: (d / TENSORS).unlink(), "model.safetensors' cannot be read: no such file"),
    (lambda d: (d / TENSORS).write_bytes((d / TENSORS).read_bytes()[:500]), "is not a whole safetensors file"),
    (lambda d: (d / DESCRIPTION).write_text("{}"), "does not describe a calibrated model"),
    (lambda d: (d / DESCRIPTION).write_text("[]"), "does not describe a calibrated model"),
    (lambda d: (d / DESCRIPTION).write_text("{"), "model.json' is not valid JSON"),
    (lambda d: (d / DESCRIPTION).unlink(), "model.json' cannot be read: No such file"),
])  # fmt: skip
def test_damage_is_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message):
        load_model(folder, lambda shape: toy_model())


def test_a_model_of_another_network_is_refused(folder):
    content = json.loads((folder / DESCRIPTION).read_text())
    with pytest.raises(InputError, match=f"does not fit backbone '{content['model']['backbone']}'"):
        load_model(folder, lambda shape: toy_model([W3]))
