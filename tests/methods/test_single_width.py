"""What is particular to AdaRound, BRECQ, QDrop and rounding to nearest: passes, Fisher weights, departures."""

import pytest
import torch
import torch.nn.functional as F

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from ptmq.reconstruction.features import Features, propagate
from tests.toys import W3, W8, feature_error, searched_model, toy_model

W3A32 = BitWidth(3, 32)


def test_adaround_learns_layers_with_their_activation_function():
    method, model = create("adaround", {"iterations": 5}, [W3]), toy_model([W3])
    (hooks,) = method.passes()
    parts = [part.name for unit in model.units for part in hooks.parts(unit)]
    assert parts == ["stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "fc"]
    assert hooks.widths == (W3A32,) and method.count_iterations(model) == 6 * 5


def test_adaround_leaves_activation_step_sizes_to_the_search(images):
    model, start = toy_model([W3]), searched_model(images, [W3])
    create("adaround", {"iterations": 5, "batch_size": 8}, [W3]).calibrate(model, images, 0)
    for quantizer, before in zip(model.quantizers, start.quantizers, strict=True):
        assert [s.item() for s in quantizer.step.values()] == [s.item() for s in before.step.values()]


def test_brecq_learns_weights_first_and_step_sizes_after(images):
    settings = {"iterations": 6, "activation_iterations": 4, "batch_size": 8}
    method, model = create("brecq", settings, [W3]), toy_model([W3])
    records = method.calibrate(model, images, 0)
    # the head has no activation of its own
    assert [r["unit"] for r in records] == ["stem", "blocks.0", "blocks.1", "head", "stem", "blocks.0", "blocks.1"]
    assert [r["iterations"] for r in records] == [6] * 4 + [4] * 3 and method.count_iterations(model) == 36
    assert list(records[0]["error_after"]) == ["W3A32"] and list(records[4]["error_after"]) == ["W3A3"]


def test_the_weights_of_brecq_do_not_know_the_activation_width(images):
    """The first pass is the same for W3A3 and W3A32, and the second leaves its weights alone."""
    settings = {"iterations": 10, "activation_iterations": 10, "batch_size": 8}
    models = []
    for width in (W3, W3A32):
        model = toy_model([width])
        create("brecq", settings, [width]).calibrate(model, images, 0)
        models.append(model)
    for one, other in zip(models[0].layers, models[1].layers, strict=True):
        assert torch.equal(one.quantizer.rounding, other.quantizer.rounding)
        assert torch.equal(one.quantizer.step, other.quantizer.step)
    start = searched_model(images, [W3])
    pairs = [(q, s) for q, s in zip(models[0].quantizers, start.quantizers, strict=True) if not q.fixed]
    assert pairs and all(q.step["3"].item() != s.step["3"].item() for q, s in pairs)


def test_the_second_pass_of_brecq_takes_a_quarter_by_default():
    first, second = create("brecq", {"iterations": 10}, [W3]).passes()
    assert (first.settings.iterations, second.settings.iterations) == (10, 3)
    (alone,) = create("brecq", {"iterations": 10}, [W3A32]).passes()
    assert alone.widths == (W3A32,), "FP activations have no step size"


def test_the_fisher_weights_are_the_squared_gradient_of_the_output(images):
    """For the head, whose output is the logits, d KL / d logits is (p_quantized - p_fp) / batch."""
    model = searched_model(images, [W3A32], "minmax")
    (hooks,) = create("brecq", {"fisher": True, "batch_size": 16}, [W3A32]).passes()
    x = images
    for unit in model.units[:-1]:
        x = propagate(unit, x, FULL_PRECISION)
    head = model.units[-1]
    features = Features(x, {W3A32: 2 * x}, propagate(head, x, FULL_PRECISION))
    weights = hooks.importance(head, [], features)
    quantized = propagate(head, 2 * x, W3A32)
    gradient = (F.softmax(quantized, 1) - F.softmax(features.target, 1)) / 16
    torch.testing.assert_close(weights, (gradient.abs() + 1) ** 2, atol=1e-5, rtol=1e-5)
    assert weights.max() > 1.001
    stem = model.units[0]
    whole = Features(images, {W3A32: images}, propagate(stem, images, FULL_PRECISION))
    assert hooks.importance(stem, model.units[1:], whole).shape == whole.target.shape
    (plain,) = create("brecq", {}, [W3A32]).passes()
    assert plain.importance(stem, model.units[1:], whole) is None


def test_the_search_of_nearest_is_better_than_the_whole_range(images):
    errors = {}
    for name in ("nearest_minmax", "nearest_mse"):
        model = toy_model([W3, W8])
        assert create(name, {}, [W3, W8]).calibrate(model, images, 0) == [], "nothing is learned"
        errors[name] = feature_error(model, images)
    assert errors["nearest_mse"] < errors["nearest_minmax"]


@pytest.mark.parametrize("method, settings, message", [
    ("adaround", {"keep": 0.5}, "adaround: keep must be 1 \\(AdaRound drops nothing\\). Got 0.5."),
    ("adaround", {"lr_step_size": 0.1}, "adaround: lr_step_size must be 0"),
    ("brecq", {"keep": 0.5}, "brecq: keep must be 1"),
    ("brecq", {"activation_iterations": -1}, "brecq: activation_iterations must be 0 or more. Got -1."),
    ("qdrop", {"lr_rounding_schedule": "cosin"}, "lr_rounding_schedule 'cosin' is unknown. Did you mean 'cosine'"),
    ("nearest_minmax", {"step_size_search": "shrink"}, "step_size_search must be minmax. Got 'shrink'."),
])  # fmt: skip
def test_what_a_method_does_not_do_is_said(method, settings, message):
    with pytest.raises(InputError, match=message):
        create(method, settings, [W3])
