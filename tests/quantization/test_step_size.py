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
