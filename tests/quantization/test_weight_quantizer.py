"""The quantizer of a weight: grids, stored rounding, and what it keeps ready."""

import pytest
import torch

from ptmq.common.bits import FP
from ptmq.quantization.fake_quantization import dequantize, quantize
from ptmq.quantization.rounding import AdaptiveRounding
from ptmq.quantization.step_size import SEARCHES
from ptmq.quantization.weight_quantizer import RoundedWeightQuantizer

SHAPES = [(4, 3, 2, 2), (5, 6)]


def weight_of(shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def searched(weight, widths=(3, 8), search="shrink", **options) -> RoundedWeightQuantizer:
    quantizer = RoundedWeightQuantizer(weight.shape, widths, **options)
    quantizer.search_step_sizes(weight, search)
    return quantizer


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("search", ["minmax", "shrink"])
def test_after_the_search_it_rounds_to_nearest(shape, search):
    weight = weight_of(shape)
    quantizer = searched(weight, search=search)
    for bits in (3, 8):
        step, zero = (x.view(-1, *[1] * (len(shape) - 1)) for x in SEARCHES[search](weight.flatten(1), bits))
        codes = quantize(weight, step, zero, bits)
        assert torch.equal(quantizer.codes(weight, bits).float(), codes)
        assert torch.equal(quantizer.quantized(weight, bits), dequantize(codes, step, zero))


def test_floating_point_is_the_weight_itself():
    weight = weight_of((5, 6))
    quantizer = searched(weight)
    quantizer.set_bits(FP)
    assert quantizer(weight) is weight
    quantizer.set_bits(3)
    assert not torch.equal(quantizer(weight), weight)


def test_a_fixed_width_stays_but_for_floating_point():
    quantizer = searched(weight_of((5, 6)), fixed=8)
    assert quantizer.widths == [8]
    for selected, taken in ((3, 8), (FP, FP)):
        quantizer.set_bits(selected)
        assert quantizer.bits == taken
    with pytest.raises(ValueError, match="layer has no 5-bit step size. Calibrated widths: 3, 8."):
        searched(weight_of((5, 6))).set_bits(5)


def test_codes_stay_inside_the_grid_however_far_the_rounding_moves():
    weight = weight_of((5, 6))
    quantizer = searched(weight)
    quantizer.set_rounding(torch.full((1, 5, 6), 99, dtype=torch.int16))
    assert quantizer.codes(weight, 3).eq(7).all() and quantizer.codes(weight, 3).dtype == torch.uint8
    quantizer.set_rounding(torch.full((1, 5, 6), -99, dtype=torch.int16))
    assert quantizer.codes(weight, 3).eq(0).all()


def test_a_relaxation_is_soft_until_it_is_hardened():
    weight = weight_of((4, 3, 2, 2))
    quantizer = searched(weight)
    nearest = quantizer.quantized(weight, 3)
    quantizer.relaxation = AdaptiveRounding(weight, quantizer.step_sizes(), quantizer.zero_points(), "lowest")
    quantizer.soften([3, FP])
    soft = quantizer.quantized(weight, 3)
    assert soft.requires_grad
    step, zero = quantizer.step_sizes()[3], quantizer.zero_points()[3]
    codes = soft.detach() / step + zero
    inside = (codes > 0.5) & (codes < 6.5)
    torch.testing.assert_close(soft[inside], weight[inside])  # it starts at the weight
    quantizer.relaxation.v.data.neg_()
    quantizer.harden()
    hard = quantizer.quantized(weight, 3)
    assert quantizer.relaxation is None and not hard.requires_grad and not torch.equal(hard, nearest)
    codes = hard / step + zero
    torch.testing.assert_close(codes, codes.round(), atol=1e-4, rtol=0)


def test_what_is_kept_ready_is_forgotten_where_it_no_longer_fits():
    weight = weight_of((5, 6))
    quantizer, other = searched(weight), searched(weight, search="minmax")
    for change in (
        quantizer.forget,
        lambda: quantizer.set_rounding(quantizer.rounding),
        lambda: quantizer.load_state_dict(other.state_dict()),
        quantizer.double,
    ):
        quantizer.quantized(weight, 3)
        assert list(quantizer.prepared())
        change()
        assert not list(quantizer.prepared())
    assert torch.equal(quantizer.float().quantized(weight, 3), other.quantized(weight, 3))


def test_a_rounding_of_every_width_is_loaded_into_one_of_all(tmp_path):
    weight = weight_of((5, 6))
    per_width, fresh = searched(weight), RoundedWeightQuantizer(weight.shape, (3, 8))
    assert len(per_width.rounding) == 2 and len(fresh.rounding) == 1
    fresh.load_state_dict(per_width.state_dict())
    for bits in (3, 8):
        assert torch.equal(fresh.codes(weight, bits), per_width.codes(weight, bits))
