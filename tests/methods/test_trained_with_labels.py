"""Any-Precision, MultiQuant and RobustQuant: formulas against the reference implementations, and their models."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from baselines.any_precision import decode, quantize_activation, quantize_weight, scale_of, weight_codes
from baselines.multiquant import adaptive_label
from baselines.robustquant import TARGET, kurtosis, regularized
from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.data.images import ImagesInMemory
from ptmq.methods.interface import Task, create
from ptmq.methods.label_training import soft_cross_entropy
from ptmq.reconstruction.engine import ResumeFile
from ptmq.reconstruction.settings import Execution
from tests.toys import CPU, W3, W4, W8, Toy, same_state, toy_network, vectors

WIDTHS = [W3, W4, W8]


# ---------------------------------------------------------------- formulas
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 32])
def test_dorefa_gives_the_released_codes(bits):
    v = vectors("any_precision")
    weight = torch.tensor(v["weight"], requires_grad=True)
    expected = v["per_bit"][str(bits)]
    out = quantize_weight(weight, bits)
    torch.testing.assert_close(out, torch.tensor(expected["weight_q"]), atol=1e-6, rtol=0)
    out.backward(torch.tensor(v["upstream"]))
    torch.testing.assert_close(weight.grad, torch.tensor(expected["grad_w"]), rtol=1e-4, atol=1e-6)
    activations = quantize_activation(torch.tensor(v["act"]), bits)
    torch.testing.assert_close(activations, torch.tensor(expected["act_q"]), atol=1e-6, rtol=0)
    if bits != 32:
        assert weight_codes(weight.detach(), bits).tolist() == expected["codes"]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_dropping_bits_of_a_code_is_not_quantizing_anew(bits):
    v = vectors("any_precision")
    weight = torch.tensor(v["weight"])
    expected = v["truncation"][str(bits)]
    codes = weight_codes(weight, 8) >> (8 - bits)
    assert codes.tolist() == expected["truncated_codes"]
    torch.testing.assert_close(
        decode(codes.float(), bits, scale_of(weight)), torch.tensor(expected["dequant_truncated"]), atol=1e-6, rtol=0
    )
    assert int((codes != weight_codes(weight, bits)).sum()) == expected["n_different"]


def test_soft_cross_entropy_is_the_released_one():
    v = vectors("any_precision")["soft_ce"]
    target = torch.tensor(v["teacher_logits"]).softmax(1)
    assert float(soft_cross_entropy(torch.tensor(v["student_logits"]), target)) == pytest.approx(v["loss"], abs=1e-6)


def test_kurtosis_is_the_released_one():
    v = vectors("kure")
    tensors = [torch.tensor(part["w"], requires_grad=True) for part in v["tensors"]]
    for tensor, part in zip(tensors, v["tensors"], strict=True):
        assert float(kurtosis(tensor.detach())) == pytest.approx(part["kurtosis"], rel=1e-5)
    loss = torch.stack([(kurtosis(tensor) - TARGET).square() for tensor in tensors]).mean()
    assert float(loss.detach()) == pytest.approx(v["mean_loss"], rel=1e-5)
    loss.backward()
    for tensor, part in zip(tensors, v["tensors"], strict=True):
        torch.testing.assert_close(tensor.grad, torch.tensor(part["grad_of_mean_loss"]), rtol=1e-4, atol=1e-6)


def test_the_target_is_the_kurtosis_of_a_uniform_distribution():
    assert float(kurtosis(torch.linspace(-1, 1, 100_001))) == pytest.approx(TARGET, rel=1e-3)


def test_the_first_convolution_is_not_regularized():
    assert [tuple(weight.shape) for weight in regularized(Toy())] == [(8, 8, 3, 3)] * 4


def test_labels_follow_a_higher_width_as_far_as_it_is_right():
    y = torch.tensor([0, 1])
    certain = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])  # right, and wrong
    assert adaptive_label(y, certain).tolist() == [[1, 0, 0], [0, 1, 0]]
    unsure = torch.tensor([[0.6, 0.4, 0.0], [0.6, 0.4, 0.0]])
    labels = adaptive_label(y, unsure)
    torch.testing.assert_close(labels.sum(1), torch.ones(2))
    torch.testing.assert_close(labels[1], 0.4 * unsure[1] + 0.6 * F.one_hot(y, 3)[1])


def test_an_iteration_trains_the_lowest_a_random_and_the_highest_width():
    generator = torch.Generator().manual_seed(0)
    method = create("multiquant", {}, [BitWidth(b, b) for b in (3, 4, 5, 8)])
    drawn = [method.drawn(generator) for _ in range(50)]
    assert {(str(d[0]), str(d[2])) for d in drawn} == {("W8A8", "W3A3")}
    assert {str(d[1]) for d in drawn} == {"W4A4", "W5A5"}
    assert len(create("multiquant", {}, WIDTHS[:2]).drawn(generator)) == 2


# ---------------------------------------------------------------- models
def test_any_precision_keeps_statistics_by_width(images):
    model = create("any_precision", {}, WIDTHS).build(toy_network(), ["blocks.*"]).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.set_bits(4, 4)
    model(images)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed and all(".W4A4." in key for key in changed)


def test_any_precision_truncates_the_code_of_the_highest_width(images):
    model = create("any_precision", {}, WIDTHS).build(toy_network(), ["blocks.*"]).eval()
    outputs = {}
    for mode in model.modes:
        model.set_mode(mode)
        for width in WIDTHS:
            model.set_bits(width.weight, width.activation)
            outputs[mode, width.weight] = model(images)
    torch.testing.assert_close(outputs["", 8], outputs["truncated", 8], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outputs["", 3], outputs["truncated", 3], atol=1e-3)
    inner = model.layers[1]
    assert inner.quantizer.codes.dtype == torch.uint8
    first = model.layers[0]
    assert first.weight_at(3) is first.weight, "the first layer stays in floating point"


def test_the_step_sizes_of_adaptive_bn_are_by_channel_as_those_of_nearest(images):
    """Where no BatchNorm is folded, its weights are those of rounding to nearest."""
    method = create("adaptive_bn", {}, WIDTHS)
    model = method.build(toy_network(), ["blocks.*"]).eval()
    method.calibrate(model, images, 0)
    nearest = create("nearest_mse", {}, WIDTHS)
    folded = nearest.build(toy_network(), ["blocks.*"])
    nearest.calibrate(folded, images, 0)
    assert model.layers[0].quantizer.step.shape == (1, 8) and model.layers[1].quantizer.step.shape == (3, 8)
    assert torch.equal(model.layers[-1].weight_at(8), list(folded.layers)[-1].weight_at(8))


@pytest.mark.parametrize("method, widths, message", [
    ("multiquant", WIDTHS[:1], "multiquant trains two widths or more. Got W3A3"),
    ("any_precision", [BitWidth(4, 32), W8], "any_precision trains integer widths. Got W4A32, W8A8"),
])  # fmt: skip
def test_widths_that_cannot_be_trained_are_said(method, widths, message):
    with pytest.raises(InputError, match=message):
        create(method, {}, widths)


def test_a_pair_of_bits_that_was_not_trained_is_said():
    model = create("any_precision", {}, WIDTHS).build(toy_network(), ["blocks.*"])
    with pytest.raises(InputError, match="width W3A8 was not trained. Widths: W3A3, W4A4, W8A8"):
        model.set_bits(3, 8)


def test_any_precision_wants_a_relu_before_a_layer():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.BatchNorm2d(2),
        nn.Conv2d(2, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    with pytest.raises(InputError, match="has both signs"):
        create("any_precision", {}, WIDTHS).build(network, ["2"])


# ---------------------------------------------------------------- training
def task(network, folder) -> Task:
    labels = torch.arange(256) % 4
    x = torch.randn(256, 2, 6, 6, generator=torch.Generator().manual_seed(0)) + labels.view(-1, 1, 1, 1) / 4
    images = ImagesInMemory(x, labels, (0.0,), (1.0,))
    return Task(network, ["blocks.*"], images, torch.arange(32), 0, CPU, ResumeFile(folder / "u.safetensors"), "toy")


@pytest.mark.parametrize("name", ["any_precision", "multiquant", "robustquant"])
def test_a_training_in_bfloat16_is_another_one_and_its_model_is_float32(name, tmp_path):
    method = create(name, {"epochs": 1}, WIDTHS)
    models = []
    for autocast in (False, True):
        own = task(toy_network(), tmp_path / str(autocast))
        model, _ = method.fit(replace(own, execution=Execution(autocast=autocast)))
        models.append(model)
    assert not same_state(*models)
    assert all(parameter.dtype == torch.float32 for parameter in models[1].parameters())


def test_kurtosis_regularization_spreads_the_weights(tmp_path):
    found = {}
    for weight in (0.0, 1.0):
        method = create("robustquant", {"epochs": 6, "kurtosis_weight": weight}, WIDTHS)
        _, record = method.fit(task(toy_network(), tmp_path / str(weight)))
        found[weight] = record["training"]
    assert found[0]["kurtosis_before"] == found[1]["kurtosis_before"]
    assert abs(found[1]["kurtosis_after"] - TARGET) < 0.8 * abs(found[0]["kurtosis_after"] - TARGET)


@pytest.mark.parametrize("name", ["any_precision", "multiquant", "robustquant"])
def test_training_lowers_the_loss_and_says_what_it_took(name, tmp_path):
    method = create(name, {"epochs": 6}, WIDTHS)
    given = task(toy_network(), tmp_path)
    before = toy_network()
    model, record = method.fit(given)
    curve = record["training"]["loss"]
    assert len(curve) == 6 and curve[-1] < curve[0]
    assert record["training"]["iterations"] == 6 * 2, "two batches of 128 an epoch"
    assert record["cost"] == {"images": 256, "labels": 256, "epochs": 6}
    assert record["protocol"]["epochs"] == 6 and record["protocol"]["lr"] > 0
    assert same_state(before, toy_network()) and not same_state(model, method.build(toy_network(), ["blocks.*"]))


def test_a_network_with_nothing_to_regularize_is_said(tmp_path):
    with pytest.raises(InputError, match="there are no others"):
        create("robustquant", {}, WIDTHS).fit(task(nn.Linear(2, 2), tmp_path))


@pytest.mark.parametrize("settings, message", [
    ({"schedule": "long"}, "schedule 'long' is unknown"), ({"epochs": -1}, "epochs must be 0 .the schedule's. or more"),
    ({"lr": -0.1}, "lr must be 0"),
])  # fmt: skip
def test_wrong_settings_are_said(settings, message):
    with pytest.raises(InputError, match=message):
        create("multiquant", settings, WIDTHS)
