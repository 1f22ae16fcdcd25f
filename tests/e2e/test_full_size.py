"""One block of every ImageNet backbone goes through PTMQ at full image size, so that nothing surprises a user there."""

import math

import pytest
import torch

from ptmq.common.bits import BitGroups
from ptmq.methods.interface import create
from ptmq.models.zoo import BACKBONES
from ptmq.network.model import MultiBitModel
from ptmq.suite.bench import SHAPES


@pytest.mark.parametrize("name", sorted(n for n, entry in BACKBONES.items() if entry.dataset == "imagenet"))
def test_a_block_is_calibrated_at_full_size(name):
    backbone = BACKBONES[name]
    groups = BitGroups(*backbone.groups.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MultiBitModel(backbone.network(), backbone.blocks, groups.widths).eval()
    model.units = model.units[:2]  # the stem and the first block, where feature maps are largest
    images = torch.randn(4, *SHAPES["imagenet"], generator=torch.Generator().manual_seed(1))
    settings = {"steps": 2, "batch_size": 2, **backbone.settings.get("ptmq", {})}
    units = create("ptmq", settings, groups.widths, groups).calibrate(model, images, 0, None, lambda *_: None)
    assert [unit["unit"] for unit in units] == [unit.name for unit in model.units]
    assert all(math.isfinite(error) for unit in units for error in unit["error_after"].values())
    for unit in model.units:
        for layer in unit.layers:
            assert set(layer.rounding.unique().tolist()) <= {0, 1}, "one hard rounding for all widths"
            assert len(layer.rounding) == 1
    with torch.no_grad():
        for width in groups.widths:
            model.set_bits(width.weight, width.activation)
            assert model(images).isfinite().all()
