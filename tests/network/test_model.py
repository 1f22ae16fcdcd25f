"""MultiBitModel: switching, what is kept ready, errors."""

import pytest
import torch

from ptmq.common.bits import FULL_PRECISION
from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from tests.toys import GROUPS, W3, W4, W8, is_hard, logits, searched_model, toy_model, toy_network


@pytest.fixture
def model(images):
    return searched_model(images)


def test_switching_away_and_back_restores_the_logits(model, images):
    before = {width: logits(model, images, width) for width in GROUPS.widths}
    for width in reversed(GROUPS.widths):
        assert torch.equal(logits(model, images, width), before[width])
    assert len({tuple(x.flatten().tolist()) for x in before.values()}) == len(GROUPS.widths)


def test_fp_is_the_network_which_is_not_changed(images):
    network = toy_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    model = MultiBitModel(network, QuantizationSpec(["blocks.*"], [W3]))
    model.search_step_sizes(images, "shrink")
    logits(model, images, W3)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    torch.testing.assert_close(logits(model, images, FULL_PRECISION), network(images), atol=1e-5, rtol=1e-5)


def test_more_bits_are_closer_to_fp(model, images):
    """Down to the error that the edges leave, which keep 8 bits."""
    fp = logits(model, images, FULL_PRECISION)
    errors = [float((logits(model, images, width) - fp).square().mean()) for width in GROUPS.widths]
    assert errors[:-1] == sorted(errors[:-1], reverse=True) and errors[-1] < errors[-3]


def test_weights_and_activations_are_switched_apart(model, images):
    both = logits(model, images, W3)
    model.set_bits(3, 8)
    weights = model(images)
    model.set_bits(8, 3)
    assert not torch.equal(weights, both) and not torch.equal(weights, model(images))


def test_one_unit_can_take_its_own_width(model, images):
    whole = logits(model, images, W8)
    model.set_bits(3, 3, unit="blocks.0")
    assert [layer.bits for layer in model.layers] == [8, 3, 3, 8, 8, 8]
    with torch.no_grad():
        assert not torch.equal(model(images), whole)
        model.set_bits(8, 8, unit="blocks.0")
        assert torch.equal(model(images), whole)


def test_hard_weights_lie_on_the_grid(model):
    assert is_hard(model)
    for layer in model.layers:
        quantizer = layer.quantizer
        for bits in quantizer.widths:
            codes = quantizer.codes(layer.weight, bits)
            assert codes.dtype == torch.uint8 and int(codes.max()) < 2**bits
            back = (codes - quantizer.zero_points()[bits]) * quantizer.step_sizes()[bits]
            assert torch.equal(layer.weight_at(bits), back)


def test_prepared_weights_are_the_lazy_ones_and_are_given_back(images):
    lazy, prepared = searched_model(images), searched_model(images).prepare()
    weights = sum(layer.weight.numel() * len(layer.quantizer.widths) for layer in prepared.layers)
    assert prepared.prepared_mib == pytest.approx(4 * weights / 2**20) and lazy.prepared_mib == 0
    for width in GROUPS.widths:
        assert torch.equal(logits(lazy, images, width), logits(prepared, images, width))
    prepared.forget()
    assert prepared.prepared_mib == 0


@pytest.mark.parametrize("bits, unit, message", [
    ((2, 2), None, r"width W2A2 was not calibrated. Weight bits: \[3, 4, 5, 6, 7, 8, 32\]"),
    ((4.0, 4), None, "weight bits must be 2..8, or 32 for floating point. Got 4.0."),
    ((9, 9), None, "weight bits must be 2..8, or 32 for floating point. Got 9."),
    ((4, 4), "block.0", "unit 'block.0' is unknown. Did you mean 'blocks.0'"),
])  # fmt: skip
def test_errors_say_the_way_out(model, images, bits, unit, message):
    before = logits(model, images, W4)
    with pytest.raises(InputError, match=message):
        model.set_bits(*bits, unit=unit)
    assert torch.equal(model(images), before), "nothing was switched"


def test_a_model_that_was_used_can_be_moved_or_cast(model, images):
    before = logits(model, images, W3)
    assert model.double()(images.double()).dtype == torch.float64
    assert torch.equal(logits(model.float(), images, W3), before)


def test_activations_that_are_not_finite_name_their_place(images):
    model = toy_model()
    images[3] = torch.nan
    with pytest.raises(InputError, match="unit 'stem': the activation 'relu' is NaN or infinite"):
        model.search_step_sizes(images, "minmax")
