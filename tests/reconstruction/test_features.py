"""Features: each unit gets what the units before it put out, whatever the batch."""

import pytest
import torch

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.device import memory_format
from ptmq.reconstruction import features as module
from ptmq.reconstruction.features import (
    Codes,
    Features,
    coded,
    part_features,
    propagate,
    propagate_all,
    take,
)
from ptmq.reconstruction.features import reconstruction_error as error
from tests.toys import W3, W8, logits, searched_model


def test_unit_after_unit_gives_what_the_network_gives(images, monkeypatch):
    monkeypatch.setattr(module, "INFERENCE_BATCH", 20)  # of 48 images
    model = searched_model(images)
    streamed = dict.fromkeys((FULL_PRECISION, W3, W8), images)
    for unit in model.units:
        propagate_all(unit, streamed)
    for width, x in streamed.items():
        torch.testing.assert_close(x, logits(model, images, width), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "shape, expected", [((16, 32, 32), 128), ((96, 112, 112), 3), ((3, 4096, 4096), 1), ((10,), 128)]
)
def test_large_features_pass_a_unit_a_few_images_at_a_time(shape, expected):
    x = torch.empty(300, *shape, device="meta")
    assert module.batch_size(x) == module.batch_size(Codes(x, torch.ones(1), 0)) == expected


def test_a_feature_on_a_grid_is_kept_as_bytes_and_is_the_same(images):
    model = searched_model(images)
    index = torch.tensor([4, 0, 4])
    x, kinds = images, []
    for unit in model.units:
        kept, out = coded(unit, x, W3), propagate(unit, x, W3)
        kinds.append(type(kept))
        if isinstance(kept, Codes):
            assert kept.codes.dtype == torch.uint8 and torch.equal(kept.values(), out) and len(kept) == len(out)
            assert torch.equal(kept[3:7].values(), out[3:7])
            assert kept.values().is_contiguous(memory_format=memory_format(out))
        assert torch.equal(take(kept, index), take(out, index))
        x = out
    assert kinds == [Codes, Codes, Codes, torch.Tensor], "the logits lie on no grid"
    assert isinstance(coded(model.units[0], images, FULL_PRECISION), torch.Tensor)


@pytest.mark.parametrize("shape", [(9, 3, 4, 5), (9, 7, 6), (9, 4)])
def test_rows_are_taken_in_the_layout_that_they_have(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x = x.contiguous(memory_format=memory_format(x))
    index = torch.tensor([4, 0, 4])
    rows = take(x, index)
    assert torch.equal(rows, x[index]) and rows.is_contiguous(memory_format=memory_format(x))


def test_a_part_sees_the_quantized_layers_before_it(images):
    """The input of the second convolution changes with the first one's rounding; the target does not."""
    model = searched_model(images, [W3], "minmax")
    unit = model.units[1]
    second = unit.by_layer()[1]
    x = propagate(model.units[0], images, FULL_PRECISION)
    whole = Features(x, {W3: x}, propagate(unit, x, FULL_PRECISION))
    before = part_features(unit, second, whole)
    quantizer = unit.layers[0].quantizer
    quantizer.set_rounding(quantizer.rounding.roll(1))
    after = part_features(unit, second, whole)
    assert torch.equal(before.fp, after.fp) and torch.equal(before.target, after.target)
    assert not torch.equal(before.quantized[W3], after.quantized[W3])
    assert part_features(unit, unit, whole) is whole


def test_the_error_is_the_mean_square_of_the_first_images(images, monkeypatch):
    monkeypatch.setattr(module, "ERROR_IMAGES", 10)
    model = searched_model(images, [W3])
    stem = model.units[0]
    target = propagate(stem, images, FULL_PRECISION)
    expected = float((propagate(stem, 2 * images, W3) - target)[:10].square().mean())
    assert error(stem, Features(images, {W3: 2 * images}, target)) == {"W3A3": pytest.approx(expected, rel=1e-5)}
