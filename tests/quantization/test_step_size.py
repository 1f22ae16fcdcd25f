"""Step-size searches against the reference implementations' numbers, and their properties."""

import pytest
import torch

from ptmq.quantization import step_size
from ptmq.quantization.fake_quantization import dequantize, quantize
from tests.toys import vectors

BRECQ, QDROP = vectors("step_size"), vectors("lsq")


def rows(x: torch.Tensor, per_channel: bool) -> torch.Tensor:
    return x.flatten(1) if per_channel else x.reshape(1, -1)


@pytest.mark.parametrize(
    "case", BRECQ["cases"], ids=lambda c: f"{c['name']}-{c['n_bits']}-{c['channel_wise']}-{c['scale_method']}"
)
def test_brecq_and_minmax_match_brecq(case):
    x = torch.tensor(BRECQ["inputs"][case["name"]])
    search = step_size.brecq if case["scale_method"] == "mse" else step_size.minmax
    step, zero = search(rows(x, case["channel_wise"]), case["n_bits"])
    torch.testing.assert_close(step, torch.tensor(case["delta"]).reshape(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(zero, torch.tensor(case["zero_point"], dtype=torch.float32).reshape(-1))
    shape = [-1] + [1] * (x.dim() - 1)
    codes = quantize(x, step.view(shape), zero.view(shape), case["n_bits"])
    if "x_int_clamped" in case:
        assert torch.equal(codes, torch.tensor(case["x_int_clamped"]))
    back = dequantize(codes, step.view(shape), zero.view(shape))
    torch.testing.assert_close(back, torch.tensor(case["dequant"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", QDROP["observers"], ids=lambda c: f"{c['x']}-{c['bit']}-{c['observer']}")
def test_shift_and_minmax_match_qdrop(case):
    x = torch.tensor(QDROP["inputs"][case["x"]])
    search = step_size.shift if case["observer"] == "MSEObserver" else step_size.minmax
    step, zero = search(rows(x, case["ch_axis"] == 0), case["bit"])
    torch.testing.assert_close(step, torch.tensor(case["scale"]).reshape(-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(zero, torch.tensor(case["zero_point"], dtype=torch.float32).reshape(-1))


# not shift at 8 bits: 25,600 grids
@pytest.mark.parametrize("search, bits", [("shrink", b) for b in (2, 3, 4, 8)] + [("shift", b) for b in (2, 3, 4)])
def test_search_is_not_worse_than_minmax(search, bits):
    x = torch.randn(3, 200, generator=torch.Generator().manual_seed(bits)) ** 3
    found = step_size.grid_error(x, None, *step_size.SEARCHES[search](x, bits), bits)
    assert (found <= step_size.grid_error(x, None, *step_size.minmax(x, bits), bits) + 1e-7).all()


@pytest.mark.parametrize("search", ["shrink", "brecq", "shift"])
@pytest.mark.parametrize("grids", [step_size.own, step_size.signed, step_size.nested(3)])
def test_it_is_no_matter_how_many_ranges_are_tried_at_once(search, grids, monkeypatch):
    x = torch.randn(5, 37, generator=torch.Generator().manual_seed(0))
    x[3] = 0  # where every range has the same error: the first wins
    together = step_size.SEARCHES[search](x, 4, grids=grids)
    for part in (1, 7 * x.numel()):
        monkeypatch.setattr(step_size, "PART", part)
        apart = step_size.SEARCHES[search](x, 4, grids=grids)
        assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))


@pytest.mark.parametrize("bits", [3, 8])
def test_histogram_finds_the_step_of_the_whole_tensor(bits):
    x = torch.randn(4 * step_size.BINS, generator=torch.Generator().manual_seed(0)).relu()
    exact = step_size.grid_error(x[None], None, *step_size.shrink(x[None], bits), bits)
    values, count = step_size.Histogram.of(x).rows()
    assert values.numel() < x.numel() / 2 and count.sum() == x.numel()
    assert values.amin() == x.amin() and values.amax() == x.amax()
    binned = step_size.grid_error(x[None], None, *step_size.shrink(values, bits, count), bits)
    assert binned <= exact * 1.01


def test_constant_tensors_get_a_positive_step():
    for value in (0.0, 0.5, -2.0):
        step, zero = step_size.minmax(torch.full((1, 9), value), 4)
        assert step > 0 and 0 <= zero <= 15


ONE_SIDED = torch.tensor([[5.0, 5.2, 5.9, 6.0], [-0.3, -0.2, -0.25, -0.21], [-1.0, 0.5, 2.0, 0.1]])


@pytest.mark.parametrize("search, bits", [("minmax", 4), ("shrink", 3), ("shrink", 8), ("shift", 3)])
def test_zero_points_are_codes(search, bits):
    """Of channels whose values all lie on one side of 0 as well, channel by channel and together with others."""
    for rows in (ONE_SIDED, *ONE_SIDED.split(1)):
        step, zero = step_size.SEARCHES[search](rows, bits)
        assert ((zero >= 0) & (zero <= 2**bits - 1) & (zero == zero.round())).all()
        if search != "shift":  # of a tensor with channels on either side it tries other grids
            assert torch.equal(dequantize(quantize(torch.zeros_like(step), step, zero, bits), step, zero), 0 * step)


def test_the_search_of_brecq_need_not_hold_zero():
    step, zero = step_size.brecq(ONE_SIDED, 4)
    assert zero[0] < 0 and zero[1] > 15 and step[0] < step_size.shrink(ONE_SIDED, 4)[0][0]


@pytest.mark.parametrize("count", [100, 3 * step_size.BINS])
def test_a_histogram_of_parts_is_that_of_the_whole(count):
    x = torch.randn(count, 1, generator=torch.Generator().manual_seed(0)).relu() - 0.5
    streamed = step_size.Histogram()
    for part in x.split(77):
        streamed.measure(part)
    for part in x.split(77):
        streamed.count(part)
    for ours, whole in zip(streamed.rows(), step_size.Histogram.of(x).rows(), strict=True):
        assert torch.equal(ours, whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_histogram_knows_of_values_that_are_no_numbers(value):
    histogram = step_size.Histogram()
    for part in (torch.ones(3), torch.tensor([0.0, value]), torch.ones(3)):
        histogram.measure(part)
    assert not histogram.is_finite
