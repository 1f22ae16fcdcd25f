"""One block of every ImageNet backbone goes through PTMQ at full image size, so that nothing surprises a user there."""

import pytest
import torch

from ptmq.common.bits import FULL_PRECISION, BitGroups
from ptmq.methods.interface import create
from ptmq.models.zoo import BACKBONES
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.suite.bench.networks import SHAPES
from tests.network.test_backbones import LARGE, check_coverage
from tests.toys import is_hard, logits, random_network

# vit_* and deit_* of a size are one architecture
PHOTOGRAPHS = sorted(n for n, entry in BACKBONES.items() if entry.dataset == "imagenet" and not n.startswith("vit_"))


def base_marked(names: list[str]) -> list:
    """The transformers of size base are those of size small with more channels, and take minutes."""
    return [pytest.param(name, marks=pytest.mark.large if "_base_" in name else ()) for name in names]


@pytest.mark.parametrize("name", base_marked(LARGE))
def test_a_large_network_folds_to_itself_and_is_covered(name):
    check_coverage(name)


@pytest.mark.parametrize("name", base_marked(PHOTOGRAPHS))
def test_a_block_is_calibrated_at_full_size(name):
    backbone = BACKBONES[name]
    groups = BitGroups(*backbone.groups.values())
    model = MultiBitModel(random_network(backbone.network), QuantizationSpec(backbone.blocks, groups.widths)).eval()
    model.units = model.units[:2]  # the stem and the first block, where feature maps are largest
    images = torch.randn(4, *SHAPES["imagenet"], generator=torch.Generator().manual_seed(1))
    settings = {"iterations": 2, "batch_size": 2, **backbone.settings.get("ptmq", {})}
    units = create("ptmq", settings, groups.widths, groups).calibrate(model, images, 0)
    assert [unit["unit"] for unit in units] == [unit.name for unit in model.units] and is_hard(model)
    outputs = [logits(model, images, width) for width in groups.widths]
    fp = logits(model, images, FULL_PRECISION)
    errors = [float((out - fp).square().mean()) for out in outputs]
    assert errors[-1] < errors[0] < float(fp.square().mean()), "more bits are nearer to FP, and no width is far"
    for layer in (layer for unit in model.units for layer in unit.layers):
        rounding = layer.quantizer.rounding
        assert set(rounding.unique().tolist()) <= {0, 1} and len(rounding) == 1, "one hard rounding for all widths"
