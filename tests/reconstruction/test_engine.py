"""The one loop: what it draws, what it leaves behind however it ends, and what a mistake in a pass is told."""

import gc
import weakref
from collections import Counter

import pytest
import torch

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.common.errors import InputError
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.reconstruction.engine import Learner, Random, ResumeFile, count_iterations, learning, reconstruct
from ptmq.reconstruction.features import Features, propagate
from ptmq.reconstruction.passes import AdaptiveRoundingPass, StepSizePass
from ptmq.reconstruction.settings import AdaptiveRoundingSettings, Execution
from tests.toys import CPU, W3, W8, is_hard, same_state, searched_model, toy_network

SETTINGS = AdaptiveRoundingSettings(iterations=6, batch_size=8)
W3A32 = BitWidth(3, 32)


class LayerByLayer(AdaptiveRoundingPass):
    """Learns one layer after the other."""

    def parts(self, unit):
        return unit.by_layer()


class Interrupted(Exception):
    """Raised where a progress bar would be moved."""


def interrupt(after: int):
    """Progress that raises after so many iterations."""
    seen = []

    def progress(unit: str, iterations: int, loss: float) -> None:
        seen.extend([unit] * iterations)
        if len(seen) > after:
            raise Interrupted

    return progress


def learned(images, passes=None, seed: int = 0, **options):
    model = searched_model(images, [W3])
    records = reconstruct(model, images, passes or [AdaptiveRoundingPass(SETTINGS, [W3])], seed, **options)
    return model, records


def test_every_unit_has_its_record_and_ends_hard(images):
    model, records = learned(images)
    assert [record["unit"] for record in records] == ["stem", "blocks.0", "blocks.1", "head"]
    assert {record["iterations"] for record in records} == {6} and is_hard(model)
    start = searched_model(images, [W3])
    for layer, before in zip(model.layers, start.layers, strict=True):
        assert torch.equal(layer.weight, before.weight), "weights do not learn"
        assert torch.equal(layer.quantizer.step, before.quantizer.step), "nor do their step sizes"
    moved = [q.step["3"] != s.step["3"] for q, s in zip(model.quantizers, start.quantizers, strict=True) if not q.fixed]
    assert moved and all(moved)


@pytest.mark.parametrize("kind", [AdaptiveRoundingPass, LayerByLayer, StepSizePass])
@pytest.mark.parametrize("after", [0, 8, 16])
def test_an_interruption_leaves_nothing_soft(images, kind, after):
    model = searched_model(images, [W3])
    with pytest.raises(Interrupted):
        reconstruct(model, images, [kind(SETTINGS, [W3])], 0, progress=interrupt(after))
    assert is_hard(model)


def test_a_loss_that_fails_leaves_nothing_soft(images):
    class Failing(AdaptiveRoundingPass):
        def loss(self, target, outputs):
            raise ZeroDivisionError

    model = searched_model(images, [W3])
    with pytest.raises(ZeroDivisionError):
        reconstruct(model, images, [Failing(SETTINGS, [W3])], 0)
    assert is_hard(model)


@pytest.mark.parametrize("passes", [
    [AdaptiveRoundingPass(SETTINGS, [W3])],
    [LayerByLayer(SETTINGS, [W3A32])],
    [AdaptiveRoundingPass(SETTINGS, [W3A32]), StepSizePass(SETTINGS, [W3])],
])  # fmt: skip
def test_an_interrupted_run_continues_to_the_identical_result(images, passes, tmp_path):
    whole, records = learned(images, passes)
    total = count_iterations(whole, passes)
    for after in (7, total - 2):
        path = tmp_path / f"{after}.safetensors"
        with pytest.raises(Interrupted):
            learned(images, passes, resume=ResumeFile(path), progress=interrupt(after))
        told, resume = [], ResumeFile(path)
        resumed, again = learned(images, passes, resume=resume, progress=lambda *said, told=told: told.append(said))
        assert again == records and same_state(whole, resumed)
        assert sum(iterations for _, iterations, _ in told) == total, "what was done before counts as done"
        assert resume.earlier > 0, "and so do its seconds"


def test_progress_is_told_every_iteration(images):
    told, passes = [], [LayerByLayer(SETTINGS, [W3A32])]
    model, _ = learned(images, passes, progress=lambda *said, told=told: told.append(said))
    assert sum(iterations for _, iterations, _ in told) == count_iterations(model, passes) == 6 * 6


def test_every_unit_is_run_as_often_as_the_first(images):
    """So that the cost of a calibration is linear in depth."""
    model, runs = searched_model(images, [W3]), Counter()
    for unit in model.units:
        unit.register_forward_hook(lambda unit, *_: runs.update([unit.name]))
    reconstruct(model, images, [AdaptiveRoundingPass(SETTINGS, [W3])], 0)
    assert len(runs) == 4 and len(set(runs.values())) == 1


def test_parts_draw_from_generators_of_their_own():
    def drawn(seed: int, part: int) -> list[int]:
        random = Random(seed, part, CPU)
        return [int(torch.randint(10**9, (), generator=g)) for g in (random.host, random.device)]

    draws = [drawn(seed, part) for seed in (0, 1) for part in range(4)]
    assert drawn(1, 2) == draws[6] and len({number for pair in draws for number in pair}) == 16


def test_features_in_main_memory_change_nothing(images):
    plain, records = learned(images)
    moved, again = learned(images, execution=Execution(features_in_main_memory=True))
    assert same_state(plain, moved) and records == again


def test_autocast_learns_in_bfloat16_and_is_off_by_default(images):
    passes = [AdaptiveRoundingPass(AdaptiveRoundingSettings(iterations=20, batch_size=8), [W3])]
    (plain, _), (halved, _) = (learned(images, passes, execution=Execution(autocast=on)) for on in (False, True))
    assert not Execution().autocast and is_hard(halved)
    steps = [torch.cat([p.data for q in model.quantizers for p in q.step.values()]) for model in (plain, halved)]
    assert not torch.equal(*steps)
    torch.testing.assert_close(*steps, rtol=0.05, atol=0)


def test_while_it_learns_a_unit_is_soft_and_drops(images):
    model = searched_model(images, [W3])
    unit = model.units[1]
    x = propagate(model.units[0], images, FULL_PRECISION)
    features = Features(x, {W3: x}, propagate(unit, x, FULL_PRECISION))
    hooks = AdaptiveRoundingPass(SETTINGS, [W3])
    with learning(Learner(unit, hooks, features, Random(0, 0, CPU), Execution())) as learner:
        learner.iterate()
        assert not is_hard(model) and all(q.drop for q in unit.quantizers)
        assert not torch.equal(propagate(unit, x, W3), propagate(unit, x, W3)), "dropped anew"
    assert is_hard(model) and torch.equal(propagate(unit, x, W3), propagate(unit, x, W3))


def test_importance_weighs_the_squared_error(images):
    model = searched_model(images, [W3A32])
    unit = model.units[0]
    features = Features(images, {W3A32: images}, propagate(unit, images, FULL_PRECISION))
    hooks = AdaptiveRoundingPass(AdaptiveRoundingSettings(keep=1.0, batch_size=16), [W3A32])
    losses = [
        Learner(unit, hooks, features, Random(0, 0, CPU), Execution(), importance).iterate()
        for importance in (None, torch.full_like(features.target, 3.0))
    ]
    assert float(losses[1]) == pytest.approx(3 * float(losses[0]), rel=1e-5) and losses[0] > 0


def test_nan_is_found_where_it_arises(images):
    model = searched_model(images, [W3])
    images[3] = torch.nan
    with pytest.raises(InputError, match="unit 'stem': the reconstruction loss is nan at iteration"):
        reconstruct(model, images, [AdaptiveRoundingPass(AdaptiveRoundingSettings(iterations=20), [W3])], seed=0)


@pytest.mark.parametrize("hook, message", [
    ({"loss": lambda self, target, outputs: outputs[0]}, "Wrong.loss must be a scalar. Got a tensor of shape"),
    ({"importance": lambda self, unit, later, features: features.target, "parts": lambda self, unit: unit.by_layer()},
     "Wrong.importance is for whole units"),
])  # fmt: skip
def test_a_wrong_hook_is_named(hook, message, images):
    wrong = type("Wrong", (AdaptiveRoundingPass,), hook)
    with pytest.raises(InputError, match=message):
        learned(images, [wrong(SETTINGS, [W3])])


def test_layer_by_layer_step_sizes_are_learned_that_follow_a_layer(images):
    """All but those behind a residual sum, which belong to no layer."""
    model, records = learned(images, [LayerByLayer(SETTINGS, [W3])])
    assert [r["unit"] for r in records] == [
        "stem", "blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "fc"]  # fmt: skip
    start = searched_model(images, [W3])
    moved = [not same_state(q, s) for q, s in zip(model.quantizers, start.quantizers, strict=True)]
    assert moved == [True, True, False, True, False]


def test_the_record_shows_how_far_the_rounding_was_pushed(images):
    pushed = AdaptiveRoundingSettings(iterations=150, batch_size=8)
    _, records = learned(images, [AdaptiveRoundingPass(pushed, [W3])])
    for record in records:
        before, after = record["h_before"], record["h_after"]
        assert sum(before) == sum(after) > 0 and len(before) == 20
        assert after[0] + after[-1] > before[0] + before[-1], "h(V) ends nearer to 0 and 1"
    _, records = learned(images, [StepSizePass(SETTINGS, [W3])])
    assert all(record["h_before"] == record["h_after"] == [] for record in records)


def scaled_toy(scale: float) -> MultiBitModel:
    """The toy with features of another scale between stem and head, and the same logits."""
    network = toy_network()
    network.norm.weight.data *= scale
    network.norm.bias.data *= scale
    for block in network.blocks:
        for norm in (block.bn1, block.bn2):
            norm.running_mean *= scale
            norm.bias.data *= scale
    network.fc.weight.data /= scale
    return MultiBitModel(network, QuantizationSpec(["blocks.*"], [W8])).eval()


def steps_learned(images, scale: float, **settings) -> torch.Tensor:
    """By how much every activation step size of the blocks is multiplied."""
    model = scaled_toy(scale)
    model.search_step_sizes(images, "minmax")
    steps = [quantizer.step["8"] for unit in model.units[1:3] for quantizer in unit.quantizers]
    before = torch.cat(steps).detach().clone()
    hooks = StepSizePass(AdaptiveRoundingSettings(iterations=30, batch_size=8, **settings), [W8])
    reconstruct(model, images, [hooks], 0)
    return torch.cat(steps).detach() / before


def test_step_sizes_learn_alike_at_any_scale_of_the_features(images):
    as_it_is, small = steps_learned(images, 1.0), steps_learned(images, 2.0**-7)
    assert (as_it_is - 1).abs().min() > 0.005, "they learn"
    torch.testing.assert_close(small, as_it_is, atol=0.02, rtol=0)
    absolute = [steps_learned(images, s, lr_step_size=2e-3, lr_step_size_relative=False) for s in (1.0, 2.0**-7)]
    assert (absolute[1] - absolute[0]).abs().max() > 0.5


def test_what_was_learned_of_a_unit_holds_no_features(images):
    """Neither it nor its schedule: features would stay in memory until the garbage collector comes by."""
    model = searched_model(images, [W3])
    unit = model.units[0]
    features = Features(images, {W3: images}, propagate(unit, images, FULL_PRECISION))
    gone = weakref.ref(features)
    gc.disable()
    try:
        with learning(
            Learner(unit, AdaptiveRoundingPass(SETTINGS, [W3]), features, Random(0, 0, CPU), Execution())
        ) as it:
            it.iterate()
        del it, features
        assert gone() is None
    finally:
        gc.enable()
