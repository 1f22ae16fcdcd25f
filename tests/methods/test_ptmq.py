"""PTMQ's own: its readings, its groups, its settings."""

from functools import cache
from itertools import product

import pytest
import torch

from ptmq.common.bits import BitGroups
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from tests.toys import GROUPS, feature_error, is_hard, searched_model, toy_images, toy_model

QUICK = {"iterations": 4, "batch_size": 8, "step_size_search": "minmax"}
TWO = BitGroups(("W3A3", "W4A4", "W5A5"), ("W6A6", "W7A7", "W8A8"))
FOUR = BitGroups(("W3A3",), ("W4A4",), ("W5A5", "W6A6"), ("W7A7", "W8A8"))


def calibrated(images, groups=GROUPS, **settings):
    method = create("ptmq", {**QUICK, **settings}, groups.widths, groups)
    model = toy_model(groups.widths)
    return model, method.calibrate(model, images, 0)


def learned(model) -> tuple:
    """What a calibration has learned, to compare."""
    return tuple(step.item() for quantizer in model.quantizers for step in quantizer.step.values())


def test_every_reading_learns_something_of_its_own(images):
    readings = list(product(("1", "2", "3", "none"), ("figure1", "later", "none")))
    models = [calibrated(images, mfm=case, gd=gd)[0] for case, gd in readings]
    assert all(map(is_hard, models)) and len({learned(model) for model in models}) == len(readings)


@pytest.fixture(scope="module")
def plain():
    """What is learned with the defaults and a form of the GD-Loss, once for the tests that compare with it."""
    return cache(lambda gd: learned(calibrated(toy_images(), gd=gd)[0]))


@pytest.mark.parametrize("changes", [
    {"lambdas": [0.2, 0.3, 0.5]}, {"gammas": [1, 1, 0], "gd": "figure1"}, {"gd": "figure1", "gd_detach": False},
    {"initial_v": "zero"}, {"keep": 1.0}, {"lr_step_size": 2e-2}, {"lr_step_size_relative": False},
])  # fmt: skip
def test_every_setting_changes_what_is_learned(images, plain, changes):
    assert learned(calibrated(images, **changes)[0]) != plain(changes.get("gd", "later"))


@pytest.mark.parametrize("groups, gd, mfm", [
    (TWO, "figure1", "3"), (FOUR, "later", "2"), (TWO, "none", "1"), (FOUR, "figure1", "none"),
])  # fmt: skip
def test_two_to_four_groups_learn(groups, gd, mfm, images):
    weights = {"lambdas": [1 / len(groups)] * len(groups), "gammas": [1] * len(groups)}
    model, records = calibrated(images, groups, **weights, gd=gd, mfm=mfm, iterations=40)
    assert is_hard(model)
    parts = [(record["error_before"]["W3A3"], record["error_after"]["W3A3"]) for record in records]
    assert sum(after for _, after in parts) < sum(before for before, _ in parts)


def test_one_calibration_serves_all_widths(images):
    """What is learned for the lowest width costs the others little: each is better than the next lower one."""
    model, _ = calibrated(images, iterations=60)
    errors = [feature_error(model, images, width) for width in GROUPS.widths]
    assert errors == sorted(errors, reverse=True)


def test_rounding_per_width_learns_one_r_a_width(images):
    model, _ = calibrated(images, shared_rounding=False, iterations=30)
    rounding, shared = (m.units[1].layers[0].quantizer.rounding for m in (model, calibrated(images)[0]))
    assert len(rounding) == 6 and len(shared) == 1 and not torch.equal(rounding[0], rounding[-1])
    assert feature_error(model, images) < feature_error(searched_model(images, search="minmax"), images)


def test_weights_and_their_step_sizes_are_frozen(images):
    model, start = calibrated(images)[0], searched_model(images, search="minmax")
    for layer, before in zip(model.layers, start.layers, strict=True):
        assert torch.equal(layer.weight, before.weight)
        assert torch.equal(layer.quantizer.step, before.quantizer.step)
    assert learned(model) != learned(start)


@pytest.mark.parametrize("settings, message", [
    ({"lambdas": [0.5, 0.5, 0.5]}, "lambdas must be numbers that sum to 1. Got \\(0.5, 0.5, 0.5\\)"),
    ({"lambdas": [1.0]}, "ptmq: lambdas must be 3 numbers, as many as groups"),
    ({"gammas": [1, 1, -1]}, "gammas must be numbers of 0 or more"),
    ({"mfm": "4"}, "mfm '4' is unknown. Known: 1, 2, 3, none."),
    ({"mfm": 4}, "mfm '4' is unknown"),
    ({"gd": "figure"}, "gd 'figure' is unknown. Did you mean 'figure1'"),
    ({"initial_v": "mode"}, "initial_v 'mode' is unknown"),
    ({"iterations": 0}, "iterations must be at least 1. Got 0."),
    ({"warmup": 1.0}, "warmup must be in \\[0, 1\\). Got 1.0."),
    ({"keep": 1.5}, "keep must be a probability in \\[0, 1\\]. Got 1.5."),
    ({"edge_bits": 1}, "edge_bits must be 2..8. Got 1."),
    ({"step_size_search": "mse"}, "step_size_search 'mse' is unknown. Known: brecq, minmax, shift, shrink."),
    ({"beta_start": 1.0, "beta_end": 2.0}, "beta_start, beta_end must be falling and positive"),
])  # fmt: skip
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        create("ptmq", settings, GROUPS.widths, GROUPS)


@pytest.mark.parametrize("widths, groups, message", [
    (GROUPS.widths, None, "ptmq needs bit groups"),
    (GROUPS.widths[:3], GROUPS, "ptmq calibrates the widths of its groups"),
])  # fmt: skip
def test_it_needs_groups_of_its_widths(widths, groups, message):
    with pytest.raises(InputError, match=message):
        create("ptmq", {}, widths, groups)
