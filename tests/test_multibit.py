"""MultiBitModel: switching, saving, loading, errors."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import GROUPS, ROOT, toy_model, toy_network

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from ptmq.models.zoo import BACKBONES
from ptmq.network.model import MultiBitModel
from ptmq.network.serialization import DESCRIPTION, TENSORS, load_model, save_model

NEAREST = create("nearest_mse", {}, GROUPS.widths)


@pytest.fixture
def model(images):
    model = toy_model()
    model.search_steps(images, "shrink")
    return model


@torch.no_grad()
def logits(model, images, width):
    model.set_bits(width.weight, width.activation)
    return model(images)


def test_switching_away_and_back_restores_the_logits(model, images):
    before = {width: logits(model, images, width) for width in GROUPS.widths}
    for width in reversed(GROUPS.widths):
        assert torch.equal(logits(model, images, width), before[width])
    assert len({tuple(x.flatten().tolist()) for x in before.values()}) == len(GROUPS.widths)


def test_fp_is_the_network(model, images):
    with torch.no_grad():
        expected = toy_network()(images)
    model.set_bits(3, 3)
    torch.testing.assert_close(logits(model, images, BitWidth(32, 32)), expected, atol=1e-5, rtol=1e-5)


def test_more_bits_are_closer_to_fp(model, images):
    fp = logits(model, images, BitWidth(32, 32))
    errors = [float((logits(model, images, width) - fp).square().mean()) for width in GROUPS.widths]
    assert errors == sorted(errors, reverse=True)


def test_one_unit_can_take_its_own_width(model, images):
    whole = logits(model, images, BitWidth(8, 8))
    model.set_bits(3, 3, unit="blocks.0")
    assert [layer.bits for layer in model.layers] == [8, 3, 3, 8, 8, 8]
    with torch.no_grad():
        assert not torch.equal(model(images), whole)
    model.set_bits(8, 8, unit="blocks.0")
    with torch.no_grad():
        assert torch.equal(model(images), whole)


def test_hard_weights_lie_on_the_grid(model):
    for layer in model.layers:
        for bits in layer.widths:
            codes = layer.codes(bits)
            assert codes.dtype == torch.uint8 and int(codes.max()) < 2**bits
            back = (codes - layer.zero_points()[bits]) * layer.steps()[bits]
            assert torch.equal(layer.weight_at(bits), back)


def test_prepared_weights_are_the_lazy_ones(images):
    lazy, prepared = toy_model(), toy_model()
    for model in (lazy, prepared):
        model.search_steps(images, "minmax")
    prepared.prepare()
    for width in GROUPS.widths:
        assert torch.equal(logits(lazy, images, width), logits(prepared, images, width))


@pytest.mark.parametrize("what, message", [
    (lambda m: m.set_bits(2, 2), "width W2A2 was not calibrated. Weight bits: \\[3, 4, 5, 6, 7, 8, 32\\]"),
    (lambda m: m.set_bits(4.0, 4), "weight bits must be 2..8, or 32 for floating point. Got 4.0."),
    (lambda m: m.set_bits(9, 9), "weight bits must be 2..8, or 32 for floating point. Got 9."),
    (lambda m: m.set_bits(4, 4, unit="block.0"), "unit 'block.0' is unknown. Did you mean 'blocks.0'"),
    (lambda m: MultiBitModel(toy_network(), ["blocks.*"], []), "needs at least one width"),
])  # fmt: skip
def test_errors_say_the_way_out(model, what, message):
    with pytest.raises(InputError, match=message):
        what(model)


def test_a_model_that_was_used_can_be_moved_or_cast(model, images):
    before = logits(model, images, BitWidth(3, 3))
    assert model.double()(images.double()).dtype == torch.float64
    assert torch.equal(logits(model.float(), images, BitWidth(3, 3)), before)


SCRIPT = """
import sys, torch, json
from ptmq.network.serialization import load_model
model, info = load_model(sys.argv[1])
x = torch.load(sys.argv[2], weights_only=True)
out = {}
with torch.no_grad():
    for width in model.widths:
        model.set_bits(width.weight, width.activation)
        out[str(width)] = model(x)
torch.save(out, sys.argv[3])
"""


@pytest.fixture
def digits_model():
    backbone = BACKBONES["digits_resnet"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = backbone.network()
    return MultiBitModel(network, backbone.blocks, GROUPS.widths).eval()


def test_a_fresh_process_gives_the_same_logits_bit_for_bit(digits_model, tmp_path):
    x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    digits_model.search_steps(x, "shrink")
    save_model(tmp_path / "model", digits_model, "digits_resnet", NEAREST, {"note": 1})
    torch.save(x, tmp_path / "x.pt")
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "model"), str(tmp_path / "x.pt"), str(tmp_path / "y.pt")]
    subprocess.run(command, check=True, cwd=ROOT)
    loaded = torch.load(tmp_path / "y.pt", weights_only=True)
    for width in GROUPS.widths:
        assert torch.equal(loaded[str(width)], logits(digits_model, x, width)), width
    assert json.loads((tmp_path / "model" / DESCRIPTION).read_text())["note"] == 1


@pytest.mark.parametrize("damage, message", [
    (lambda d: (d / TENSORS).unlink(), "model.safetensors' cannot be read: no such file"),
    (lambda d: (d / TENSORS).write_bytes((d / TENSORS).read_bytes()[:500]), "is not a whole safetensors file"),
    (lambda d: (d / DESCRIPTION).write_text("{}"), "does not describe a calibrated model"),
    (lambda d: (d / DESCRIPTION).write_text("{"), "model.json' is not valid JSON"),
    (lambda d: (d / DESCRIPTION).write_text((d / DESCRIPTION).read_text().replace("digits_resnet", "resnet20")), "does not fit backbone 'resnet20'"),
])  # fmt: skip
def test_damaged_models_are_refused(digits_model, tmp_path, damage, message):
    save_model(tmp_path, digits_model, "digits_resnet", NEAREST, {})
    damage(tmp_path)
    with pytest.raises(InputError, match=message):
        load_model(tmp_path)
