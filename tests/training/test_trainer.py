"""Methods that train with labels, the model that re-estimates BatchNorm, and the trainer."""

import json

import pytest
import torch
import torch.nn.functional as F
from conftest import Toy, toy_model, toy_network, vectors
from ptmq.methods.with_labels import soft_cross_entropy
from torch import nn

from baselines.any_precision import decode, quantize_activation, quantize_weight, scale_of, weight_codes
from baselines.multiquant import adaptive_label
from baselines.robustquant import TARGET, kurtosis, regularized
from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.data.images import ImagesInMemory
from ptmq.methods.interface import create
from ptmq.models.backbone import Training
from ptmq.models.zoo import BACKBONES
from ptmq.network.serialization import load_model
from ptmq.suite.calibration import calibrate
from ptmq.suite.evaluation import evaluate_fp, evaluate_model
from ptmq.suite.profile import Run
from ptmq.training import trainer as training
from ptmq.training.adaptive_bn import AdaptiveBNModel, recalibrate, recalibration_batches, recalibration_images
from ptmq.training.augmentation import flipped

CPU = torch.device("cpu")
WIDTHS = [BitWidth(b, b) for b in (3, 4, 8)]
TRAINED = ("any_precision", "multiquant", "robustquant")


# ---------------------------------------------------------------- formulas, against the reference implementations
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


def test_a_step_trains_the_lowest_a_random_and_the_highest_width():
    generator = torch.Generator().manual_seed(0)
    method = create("multiquant", {}, [BitWidth(b, b) for b in (3, 4, 5, 8)])
    drawn = [method.drawn(generator) for _ in range(50)]
    assert {(str(d[0]), str(d[2])) for d in drawn} == {("W8A8", "W3A3")}
    assert {str(d[1]) for d in drawn} == {"W4A4", "W5A5"}
    assert len(create("multiquant", {}, WIDTHS[:2]).drawn(generator)) == 2


# ---------------------------------------------------------------- the models
def shared_norm_model() -> AdaptiveBNModel:
    return create("multiquant", {}, WIDTHS).build(toy_network(), ["blocks.*"])


def test_a_model_that_is_not_switched_is_the_network(images):
    network = toy_network()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    for name in ("adaptive_bn", "multiquant"):
        model = create(name, {}, WIDTHS).build(network, ["blocks.*"]).eval()
        torch.testing.assert_close(model(images), network(images), rtol=1e-5, atol=1e-5)
        model.search_steps(images, "minmax")
        model.set_bits(3, 3)
        assert not torch.allclose(model(images), network(images), atol=1e-2)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_edges_have_8_bits_and_weights_lie_on_their_grid(images):
    model = shared_norm_model().eval()
    model.search_steps(images, "minmax")
    model.set_bits(3, 3)
    counts = [len(layer.quantized(layer.bits).unique()) for layer in model.layers]
    assert counts[0] > 8 and all(count <= 8 for count in counts[1:-1])
    assert [quantizer.bits for quantizer in model.quantizers] == [3, 3, 3, 3, 8]


def test_batchnorm_is_re_estimated_from_nothing_at_the_selected_width(images):
    model = shared_norm_model().eval()
    model.search_steps(images, "minmax")
    model.set_bits(3, 3)
    batches = list(images.split(16))
    seen = []
    hook = model.graph.norm.register_forward_pre_hook(lambda norm, args: seen.append(args[0]))
    assert recalibrate(model, batches) == 48
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen])
    variances = torch.stack([x.var((0, 2, 3)) for x in seen])  # unbiased
    torch.testing.assert_close(model.graph.norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.graph.norm.running_var, variances.mean(0), rtol=1e-4, atol=1e-5)
    once = {key: value.clone() for key, value in model.state_dict().items()}
    recalibrate(model, batches)
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_images_that_statistics_are_re_estimated_on_are_augmented_alike_at_every_switch():
    images = labelled()
    images.augmentation = {"shift": 1, "flip": True, "border": "black"}
    batches = recalibration_batches(len(images))
    one, two = (torch.cat(list(recalibration_images(images, batches, CPU))) for _ in range(2))
    plain = images.batch(torch.cat(list(batches)))[0]
    assert torch.equal(one, two) and one.shape == plain.shape and not torch.equal(one, plain)


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
    assert inner.codes.dtype == torch.uint8
    assert torch.equal(model.layers[0].quantized(3), model.layers[0].weight), "the first layer stays in floating point"


def test_the_step_sizes_of_adaptive_bn_are_by_channel_as_those_of_nearest(images):
    """Where no BatchNorm is folded, its weights are those of rounding to nearest."""
    method = create("adaptive_bn", {}, WIDTHS)
    model = method.build(toy_network(), ["blocks.*"]).eval()
    method.calibrate(model, images, 0, None, lambda *_: None)
    folded = toy_model(WIDTHS)
    create("nearest_mse", {}, WIDTHS).calibrate(folded, images, 0, None, lambda *_: None)
    assert model.layers[0].step.shape == (1, 8) and model.layers[1].step.shape == (3, 8)
    assert torch.equal(model.layers[-1].weight_at(8), list(folded.layers)[-1].weight_at(8))


@pytest.mark.parametrize(
    "method, widths, message",
    [
        ("multiquant", WIDTHS[:1], "multiquant trains two widths or more. Got W3A3"),
        ("any_precision", [BitWidth(4, 32), BitWidth(8, 8)], "any_precision trains integer widths. Got W4A32, W8A8"),
    ],
)
def test_widths_that_cannot_be_trained_are_said(method, widths, message):
    with pytest.raises(InputError, match=message):
        create(method, {}, widths)


def test_a_pair_of_bits_that_was_not_trained_is_said():
    model = create("any_precision", {}, WIDTHS).build(toy_network(), ["blocks.*"])
    with pytest.raises(InputError, match="width W3A8 was not trained. Widths: W3A3, W4A4, W8A8"):
        model.set_bits(3, 8)


def test_any_precision_wants_a_relu_before_a_layer():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(InputError, match="has both signs"):
        create("any_precision", {}, WIDTHS).build(network, ["2"])


def test_batchnorm_inside_a_function_is_said():
    backbone = BACKBONES["regnetx_600mf"]
    with torch.random.fork_rng(devices=[]):
        network = backbone.network()
    with pytest.raises(InputError, match="no layer of their own"):
        create("multiquant", {}, WIDTHS).build(network, backbone.blocks)


def test_a_network_without_batchnorm_is_said():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
    with pytest.raises(InputError, match="Sequential has no BatchNorm to re-estimate"):
        create("multiquant", {}, WIDTHS).build(network, ["2"])


def test_a_width_that_was_not_trained_is_said():
    with pytest.raises(InputError, match=r"width W5A5 was not calibrated. Weight bits: \[3, 4, 8, 32\]"):
        shared_norm_model().set_bits(5, 5)


# ---------------------------------------------------------------- the trainer
def labelled(count: int = 96) -> ImagesInMemory:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(4, (count,), generator=generator)
    x = torch.rand(count, 2, 6, 6, generator=generator) + labels.view(-1, 1, 1, 1) / 4
    return ImagesInMemory(x, labels, (0.5, 0.5), (0.5, 0.5))


def state_after(tmp_path, settings: Training, epochs: list[int], stop_after: int | None = None):
    """The toy with dropout after a training; `epochs` gets the numbers of those that ran."""
    network = toy_network()
    network.fc = nn.Sequential(nn.Dropout(0.5), network.fc)

    def progress(epoch: int, loss: float) -> None:
        epochs.append(epoch)
        if epoch == stop_after:
            raise KeyboardInterrupt

    training.train(network, labelled(), settings, 3, CPU, progress, checkpoint=tmp_path / "training.pt")
    return network.state_dict()


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path, optimizer):
    settings = Training(epochs=4, batch_size=32, optimizer=optimizer, lr=1e-2, flip=True)
    epochs: list[int] = []
    whole = state_after(tmp_path / "whole", settings, [])
    with pytest.raises(KeyboardInterrupt):
        state_after(tmp_path / "parts", settings, epochs, stop_after=2)
    parts = state_after(tmp_path / "parts", settings, epochs)
    assert epochs == [1, 2, 3, 4]
    assert all(torch.equal(value, whole[key]) for key, value in parts.items())


def test_the_learning_rate_falls_in_steps():
    settings = Training(lr=1.0, warmup=0.0, decay="step", drops=(0.5, 0.75))
    rates = [training.learning_rate(step, 100, settings) for step in range(100)]
    assert rates == pytest.approx([1.0] * 50 + [0.1] * 25 + [0.01] * 25)


def test_a_parameter_may_learn_at_a_rate_of_its_own(tmp_path):
    network = toy_network()
    still = network.fc.weight
    before = still.detach().clone()
    settings = Training(epochs=1, batch_size=32, optimizer="sgd", weight_decay=0.0)
    training.train(network, labelled(), settings, 0, CPU, rates={still: 0.0})
    assert torch.equal(network.fc.weight, before) and not torch.equal(network.fc.bias, toy_network().fc.bias)


def test_half_of_the_images_are_mirrored_whole():
    x = torch.arange(400 * 2.0).view(400, 1, 1, 2)
    out = flipped(x, torch.Generator().manual_seed(0))
    mirrored = (out[:, 0, 0, 0] > out[:, 0, 0, 1]).float()
    assert torch.equal(out.sort(3).values, x) and 0.4 < float(mirrored.mean()) < 0.6


def test_a_loss_that_is_not_finite_is_said(tmp_path):
    network = toy_network()
    network.fc.weight.data.fill_(torch.nan)
    with pytest.raises(InputError, match="the loss of epoch 1 is nan"):
        training.train(network, labelled(), Training(epochs=1, batch_size=32), 0, CPU)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"optimizer": "lion"}, "optimizer 'lion' is unknown"),
        ({"decay": "linear"}, "decay 'linear' is unknown"),
        ({"drops": (1.5,)}, "drops must be shares between 0 and 1"),
    ],
)
def test_wrong_training_settings_are_said(values, message):
    with pytest.raises(InputError, match=message):
        Training(**values)


@pytest.mark.parametrize("settings, message", [({"schedule": "long"}, "schedule 'long'"), ({"epochs": -1}, "epochs")])
def test_wrong_settings_of_a_trained_method_are_said(settings, message):
    with pytest.raises(InputError, match=message):
        create("multiquant", settings, WIDTHS)


# ---------------------------------------------------------------- whole runs on the digits
@pytest.fixture(scope="module")
def fp(tmp_path_factory):
    from ptmq.cli import main

    folder = tmp_path_factory.mktemp("fp")
    weights, outputs = folder / "weights.safetensors", folder / "outputs.safetensors"
    assert main(["train", "--backbone", "digits_resnet", "--set", "epochs=8", "--out", str(weights)]) == 0
    assert [path.name for path in folder.iterdir()] == [weights.name], "the checkpoint of the training is removed"
    evaluate_fp("digits_resnet", weights, "test", outputs, None, CPU)
    return weights, outputs


def run_of(method: str, **settings) -> Run:
    widths = ("W3A3", "W5A5", "W8A8")
    return Run("p", "digits", "digits_resnet", method, "default", widths, None, 0, settings, calibration_images=64)


@pytest.mark.parametrize("method", ["adaptive_bn", *TRAINED])
def test_a_run_is_recorded_and_its_model_loads(method, fp, tmp_path):
    weights, outputs = fp
    settings = {"epochs": 2} if method in TRAINED else {}
    calibrate(run_of(method, **settings), weights, None, tmp_path, CPU)
    record = evaluate_model(tmp_path, "test", outputs, None, CPU)
    model, _ = load_model(tmp_path)
    assert not list(tmp_path.glob("unfinished*"))
    modes = {"": 3} | {mode: 3 for mode in model.modes if mode}
    assert {mode: sum(r.get("mode", "") == mode for r in record["results"]) for mode in modes} == modes
    for line in record["results"]:
        recalibrated = method in ("adaptive_bn", "multiquant") and not line.get("mode")
        assert line.get("switch_images", 0) == (896 if recalibrated else 0), "seven batches of 128"
    if method in TRAINED:
        assert record["cost"]["labels"] == 1000 and record["cost"]["epochs"] == 2
        assert len(record["training"]["loss"]) == 2
        assert record["protocol"]["schedule"] == "short" and record["protocol"]["epochs"] == 2
        assert record["protocol"]["batch_size"] == 128 and record["protocol"]["lr"] > 0
        with pytest.raises(InputError, match="Give --fp-outputs"):
            evaluate_model(tmp_path, "test", None, None, CPU)
    else:
        assert record["cost"]["images"] == 64 and "labels" not in record["cost"]
    again = evaluate_model(tmp_path, "test", outputs, None, CPU)
    without_times = [{k: v for k, v in line.items() if k != "switch_ms"} for line in record["results"]]
    assert [{k: v for k, v in line.items() if k != "switch_ms"} for line in again["results"]] == without_times
    json.dumps(record)


def test_a_run_that_is_killed_while_training_ends_the_same(fp, tmp_path, monkeypatch):
    weights, _ = fp
    run = run_of("multiquant", epochs=3)
    calibrate(run, weights, None, tmp_path / "whole", CPU)
    save = training.State.save

    lengths = []

    def killed(state):
        save(state)
        lengths.append(len(state.curve))
        if lengths == [1, 2]:
            raise KeyboardInterrupt

    monkeypatch.setattr(training.State, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        calibrate(run, weights, None, tmp_path / "parts", CPU)
    assert list((tmp_path / "parts").glob("unfinished*.pt"))
    calibrate(run, weights, None, tmp_path / "parts", CPU)
    assert lengths == [1, 2, 3]
    one, two = ((tmp_path / part / "model.safetensors").read_bytes() for part in ("whole", "parts"))
    assert one == two


def test_training_spreads_the_weights(fp, tmp_path):
    weights, _ = fp
    calibrate(run_of("robustquant", epochs=5), weights, None, tmp_path, CPU)
    calibrate(run_of("robustquant", epochs=5, kurtosis_weight=0), weights, None, tmp_path / "without", CPU)
    found, without = (json.loads((p / "model.json").read_text())["training"] for p in (tmp_path, tmp_path / "without"))
    assert found["kurtosis_before"] == without["kurtosis_before"]
    assert abs(found["kurtosis_after"] - TARGET) < 0.8 * abs(without["kurtosis_after"] - TARGET)


def test_a_network_with_nothing_to_regularize_is_said():
    from ptmq.methods.interface import Task

    task = Task(nn.Linear(2, 2), [], labelled(), torch.arange(4), 0, CPU, None, "")
    with pytest.raises(InputError, match="there are no others"):
        create("robustquant", {}, WIDTHS).fit(task)
