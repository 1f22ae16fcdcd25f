"""What is particular to each baseline: its numbers, its units, its passes, its departures."""

import pytest
import torch
import torch.nn.functional as F
from conftest import toy_model, vectors

from baselines.flexround import ElementwiseDivision
from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from ptmq.reconstruction.engine import Checkpoint, Learner, Random, count_steps
from ptmq.reconstruction.features import Features, propagate

W3, W3A32 = BitWidth(3, 3), BitWidth(3, 32)
V = vectors("flexround")


def close(a, b, atol=1e-6):
    b = torch.as_tensor(b)
    torch.testing.assert_close(a.detach().reshape(b.shape), b, atol=atol, rtol=1e-5)


# ---------------------------------------------------------------- FlexRound
def division(case: dict, weight: torch.Tensor) -> tuple[ElementwiseDivision, int]:
    bits = case.get("n_bits", 4)
    column = (-1, *[1] * (weight.dim() - 1))
    step, zero = torch.tensor(case["s1"]).view(column), torch.tensor(case["zero_point"]).view(column)
    if case.get("symmetric"):  # codes -2^(b-1) .. 2^(b-1) - 1 are ours with the zero point in the middle
        zero = zero + 2 ** (bits - 1)
    return ElementwiseDivision(weight, {bits: step}, {bits: zero}), bits


@pytest.mark.parametrize(
    "case", V["cases"], ids=lambda c: f"{c['n_bits']}-{c['channel_wise']}-{c['symmetric']}-{c['clipping']}"
)
def test_flexround_matches_on_linear_layers(case):
    rounding, bits = division(case, torch.tensor(V["weight"]))
    close(rounding.soft([bits])[bits], case["y_init"])
    rounding.log_s2.data.copy_(torch.tensor(V["log_S2"]))
    rounding.log_s3.data.copy_(torch.tensor(V["log_s3"]))
    soft = rounding.soft([bits])[bits]
    close(soft, case["y_perturbed"])
    soft.backward(torch.tensor(V["upstream"]))
    close(rounding.log_s2.grad, case["grad_log_S2"])
    close(rounding.log_s3.grad, case["grad_log_s3"], atol=2e-6)
    close(rounding.log_s1[str(bits)].grad, case["grad_log_s1"], atol=2e-6)


def test_flexround_matches_on_convolutions():
    case = V["conv_extension"]
    rounding, bits = division(case, torch.tensor(case["weight"]))
    rounding.log_s2.data.copy_(torch.tensor(case["log_S2"]))
    rounding.log_s3.data.copy_(torch.tensor(case["log_s3"]).view(-1, 1, 1, 1))
    rounding.log_s4.data.copy_(torch.tensor(case["log_s4"]).view(1, -1, 1, 1))
    soft = rounding.soft([bits])[bits]
    close(soft, case["y"])
    soft.backward(torch.tensor(case["upstream"]))
    for name, grad in (("S2", rounding.log_s2), ("s3", rounding.log_s3), ("s4", rounding.log_s4)):
        close(grad.grad, case[f"grad_log_{name}"], atol=2e-6)
    close(rounding.log_s1[str(bits)].grad, case["grad_log_s1"], atol=2e-6)


def test_flexround_starts_from_round_to_nearest_and_stores_what_it_learned(images):
    """The stored step size and rounding give the learned weight again, however far a weight has moved."""
    model = toy_model([W3])
    model.search_steps(images, "shrink")
    layer = model.units[1].layers[0]
    rounding = create("flexround", {}, [W3]).relax(layer)
    torch.testing.assert_close(rounding.soft([3])[3].detach(), layer.weight_at(3), atol=1e-5, rtol=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in rounding.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.7)
    learned = rounding.soft([3])[3].detach()
    layer.set_rounding(rounding.hard(), rounding.steps)
    torch.testing.assert_close(layer.weight_at(3), learned, atol=1e-5, rtol=1e-5)
    assert layer.rounding.max() > 1 or layer.rounding.min() < 0, "moved no further than adaptive rounding could"
    fresh = toy_model([W3])
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.units[1].layers[0].weight_at(3), layer.weight_at(3))


def test_flexround_drops_nothing_in_the_setting_of_brecq():
    with pytest.raises(InputError, match="flexround: keep must be 1 in setting brecq .set keep: 1.. Got 0.5."):
        create("flexround", {"setting": "brecq"}, [W3])
    first, second = create("flexround", {"setting": "brecq", "keep": 1.0, "activation_steps": 7}, [W3]).phases()
    assert (first.widths, second.widths, second.settings.steps) == ((W3A32,), (W3,), 7)


# ---------------------------------------------------------------- AdaRound
def test_adaround_learns_layers_with_their_activation_function():
    method, model = create("adaround", {"steps": 5}, [W3]), toy_model([W3])
    (phase,) = method.phases()
    parts = [part for unit in model.units for part in phase.parts(unit)]
    assert [part.name for part in parts] == [
        "stem",
        "blocks.0.conv1",
        "blocks.0.conv2",
        "blocks.1.conv1",
        "blocks.1.conv2",
        "fc",
    ]
    assert phase.widths == (W3A32,) and count_steps(model, [phase]) == 6 * 5
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(parts[1](x).min()) == 0, "a ReLU follows the first convolution of a block"
        assert float(parts[2](x).min()) < 0, "the residual sum comes between the second and its ReLU"
    assert parts[1].layers[0] is model.units[1].layers[0], "the part's layer is the model's"


def test_adaround_sees_the_quantized_layers_before(images):
    """The input of the second convolution changes with the first one's rounding; the target does not."""
    from ptmq.reconstruction.features import part_features

    model = toy_model([W3])
    model.search_steps(images, "minmax")
    unit = model.units[1]
    second = unit.by_layer()[1]
    x = propagate(model.units[0], images, BitWidth(32, 32))
    whole = Features(x, {W3A32: x}, propagate(unit, x, BitWidth(32, 32)))
    before = part_features(unit, second, whole)
    layer = unit.layers[0]
    layer.set_rounding(layer.rounding.roll(1))
    after = part_features(unit, second, whole)
    assert torch.equal(before.fp, after.fp) and torch.equal(before.target, after.target)
    assert not torch.equal(before.quantized[W3A32], after.quantized[W3A32])


# ---------------------------------------------------------------- BRECQ
def test_brecq_learns_weights_first_and_step_sizes_after(images):
    method, model = create("brecq", {"steps": 6, "activation_steps": 4, "batch_size": 8}, [W3]), toy_model([W3])
    records = method.calibrate(model, images, 0, None, lambda *_: None)
    # the head has no activation of its own
    assert [r["unit"] for r in records] == ["stem", "blocks.0", "blocks.1", "head", "stem", "blocks.0", "blocks.1"]
    assert [r["steps"] for r in records] == [6] * 4 + [4] * 3 and method.count_steps(model) == 36
    assert list(records[0]["error_after"]) == ["W3A32"] and list(records[4]["error_after"]) == ["W3A3"]


def test_the_weights_of_brecq_do_not_know_the_activation_width(images):
    """The first pass is the same for W3A3 and W3A32, and the second leaves its weights alone."""
    settings = {"steps": 10, "activation_steps": 10, "batch_size": 8}
    models = []
    for width in (W3, W3A32):
        model = toy_model([width])
        create("brecq", settings, [width]).calibrate(model, images, 0, None, lambda *_: None)
        models.append(model)
    for one, other in zip(models[0].layers, models[1].layers, strict=True):
        assert torch.equal(one.rounding, other.rounding) and torch.equal(one.step, other.step)
    start = toy_model([W3])
    start.search_steps(images, "shrink")
    moved = [
        q.step["3"].item() != s.step["3"].item()
        for q, s in zip(models[0].quantizers, start.quantizers, strict=True)
        if not q.fixed
    ]
    assert all(moved)


def test_a_kill_in_the_second_pass_continues_to_the_identical_result(images, tmp_path):
    settings = {"steps": 6, "activation_steps": 4, "batch_size": 8}
    whole = toy_model([W3])
    records = create("brecq", settings, [W3]).calibrate(whole, images, 0, None, lambda *_: None)

    class Killed(Exception):
        pass

    done = []

    def kill(unit, steps, loss):
        done.append(unit)
        if done.count("blocks.0") > 6 + 2:
            raise Killed

    path = tmp_path / "unfinished.safetensors"
    with pytest.raises(Killed):
        create("brecq", settings, [W3]).calibrate(toy_model([W3]), images, 0, Checkpoint(path), kill)
    resumed = toy_model([W3])
    assert create("brecq", settings, [W3]).calibrate(resumed, images, 0, Checkpoint(path), lambda *_: None) == records
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in whole.state_dict().items())


def test_the_fisher_weights_are_the_squared_gradient_of_the_output(images):
    """For the head, whose output is the logits, d KL / d logits is (p_quantized - p_fp) / batch."""
    model = toy_model([W3A32])
    model.search_steps(images, "minmax")
    method = create("brecq", {"fisher": True, "batch_size": 16}, [W3A32])
    x = images
    for unit in model.units[:-1]:
        x = propagate(unit, x, BitWidth(32, 32))
    head = model.units[-1]
    features = Features(x, {W3A32: 2 * x}, propagate(head, x, BitWidth(32, 32)))
    weights = method.importance(head, [], features)
    quantized = propagate(head, 2 * x, W3A32)
    gradient = (F.softmax(quantized, 1) - F.softmax(features.target, 1)) / 16
    torch.testing.assert_close(weights, (gradient.abs() + 1) ** 2, atol=1e-5, rtol=1e-5)
    assert weights.max() > 1.001
    stem = model.units[0]
    whole = Features(images, {W3A32: images}, propagate(stem, images, BitWidth(32, 32)))
    assert method.importance(stem, model.units[1:], whole).shape == whole.target.shape


def test_the_fisher_weights_enter_the_loss(images):
    model = toy_model([W3A32])
    model.search_steps(images, "minmax")
    method = create("brecq", {"fisher": True, "batch_size": 16}, [W3A32])
    unit = model.units[0]
    features = Features(images, {W3A32: images}, propagate(unit, images, BitWidth(32, 32)))
    losses = [
        Learner(unit, method, features, Random(0, 0, images.device), importance).step()
        for importance in (None, torch.full_like(features.target, 3.0))
    ]
    assert float(losses[1]) == pytest.approx(3 * float(losses[0]), rel=1e-5)


# ---------------------------------------------------------------- what is fixed is said
@pytest.mark.parametrize("method, settings, message", [
    ("adaround", {"keep": 0.5}, "adaround: keep must be 1 \\(AdaRound drops nothing\\). Got 0.5."),
    ("adaround", {"lr_step_size": 0.1}, "adaround: lr_step_size must be 0"),
    ("brecq", {"keep": 0.5}, "brecq: keep must be 1"),
    ("brecq", {"activation_steps": -1}, "brecq: activation_steps must be 0 or more. Got -1."),
    ("flexround", {"setting": "adaround"}, "flexround: setting 'adaround' is unknown. Known: brecq, qdrop"),
    ("flexround", {"regularizer": 0.1}, "flexround: setting 'regularizer' is unknown"),
    ("qdrop", {"lr_rounding_schedule": "cosin"}, "lr_rounding_schedule 'cosin' is unknown. Did you mean 'cosine'"),
])  # fmt: skip
def test_what_a_method_does_not_do_is_said(method, settings, message):
    with pytest.raises(InputError, match=message):
        create(method, settings, [W3])
