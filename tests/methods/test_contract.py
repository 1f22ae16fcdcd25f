"""The contract of every registered method, on a toy; a new method is found here by itself."""

import importlib
import sys

import pytest
import torch
from conftest import GROUPS, toy_model, toy_network
from ptmq.methods.with_labels import TrainedMethod

from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError
from ptmq.data.images import ImagesInMemory
from ptmq.methods import interface as methods
from ptmq.methods.interface import METHODS, AdaptiveReconstruction, Task, create, discover
from ptmq.models.zoo import BACKBONES
from ptmq.network.layers import ActivationQuantizer
from ptmq.network.model import MultiBitModel
from ptmq.network.serialization import load_model, save_model
from ptmq.quantization.rounding import RoundingPerWidth
from ptmq.reconstruction.engine import Checkpoint, reconstruct
from ptmq.suite.run_record import code_hash

discover()
W3 = BitWidth(3, 3)
QUICK = {"steps": 60, "batch_size": 16}
LEARNED = sorted(name for name in METHODS if "steps" in METHODS[name].Settings.__dataclass_fields__)
TRAINED = sorted(name for name in METHODS if issubclass(METHODS[name], TrainedMethod))


def make(name: str, **settings):
    """A method with few steps; a multi-width one for all widths, a single-width one for W3A3."""
    cls = METHODS[name]
    quick = QUICK if name in LEARNED else {}
    return create(name, {**quick, **settings}, [W3] if cls.per_width else GROUPS.widths, GROUPS)


def calibrated(name: str, images, seed: int = 0, checkpoint=None, **settings):
    method = make(name, **settings)
    model = toy_model(method.widths)
    records = method.calibrate(model, images, seed, checkpoint, lambda unit, steps, loss: None)
    return model, records


@torch.no_grad()
def error(model, images, width=W3) -> float:
    """Squared error of the logits against the FP network's."""
    model.set_bits(width.weight, width.activation)
    return float((model(images) - toy_network()(images)).square().mean())


def same(one, two) -> bool:
    return all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


def fitted(name: str, images, folder, seed: int = 0, network=None, blocks=("blocks.*",)):
    """The model that a method makes of a network, by default of the toy, and its record."""
    labelled = ImagesInMemory(images.repeat(4, 1, 1, 1), torch.arange(4 * len(images)) % 4, (0.0,), (1.0,))
    index = torch.arange(len(images))
    checkpoint = Checkpoint(folder / f"unfinished{seed}.safetensors")
    task = Task(network or toy_network(), blocks, labelled, index, seed, torch.device("cpu"), checkpoint, name)
    method = make(name, **({"epochs": 1} if name in TRAINED else {}))
    model, record = method.fit(task)
    checkpoint.path.unlink(missing_ok=True)
    checkpoint.path.with_suffix(".pt").unlink(missing_ok=True)
    return method, model, record


@pytest.mark.parametrize("name", sorted(METHODS))
class TestContract:
    def test_it_describes_itself(self, name):
        assert METHODS[name].name == name and METHODS[name].__doc__

    def test_hard_weights_lie_on_the_grid(self, name, images, tmp_path):
        _, model, _ = fitted(name, images, tmp_path)
        if not isinstance(model, MultiBitModel):
            pytest.skip("a model of its own (tests/test_trained.py)")
        for layer in model.layers:
            assert layer.relaxation is None
            for bits in layer.widths:
                codes = layer.weight_at(bits) / layer.steps()[bits] + layer.zero_points()[bits]
                torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
                assert codes.min() > -0.5 and codes.max() < 2**bits - 0.5

    def test_fp_is_untouched(self, name, images, tmp_path):
        _, model, _ = fitted(name, images, tmp_path)
        if name in TRAINED:
            pytest.skip("its weights are trained")
        assert error(model, images, BitWidth(32, 32)) < 1e-9

    def test_the_same_seed_gives_the_same_model(self, name, images, tmp_path):
        state = torch.random.get_rng_state()
        _, one, record = fitted(name, images, tmp_path, seed=5)
        _, two, again = fitted(name, images, tmp_path, seed=5)
        assert same(one, two) and record == again
        assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"

    def test_nothing_of_the_learning_is_left(self, name, images, tmp_path):
        _, model, _ = fitted(name, images, tmp_path)
        model.set_bits(3, 3)
        with torch.no_grad():
            assert torch.equal(model(images), model(images)), "a drop is still on"
        assert not any(module.training for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))

    def test_on_the_digits_network_it_is_saved_and_loaded_bit_for_bit(self, name, tmp_path):
        backbone = BACKBONES["digits_resnet"]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = backbone.network()
        x = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        method, model, _ = fitted(name, x, tmp_path, network=network, blocks=backbone.blocks)
        save_model(tmp_path, model, "digits_resnet", method, {})
        loaded, _ = load_model(tmp_path)
        for mode in model.modes:
            for m in (model, loaded):
                m.set_mode(mode)
            for width in method.widths:
                for m in (model, loaded):
                    m.set_bits(width.weight, width.activation)
                with torch.no_grad():
                    assert torch.equal(model(x), loaded(x)) and model(x).isfinite().all()

    def test_a_single_width_method_takes_one_width(self, name):
        if METHODS[name].per_width:
            with pytest.raises(InputError, match=f"{name} calibrates one width at a time. Got W3A3, W4A4"):
                create(name, {}, GROUPS.widths, GROUPS)
        else:
            assert make(name).widths == GROUPS.widths

    def test_unknown_settings_are_named(self, name):
        known = next(iter(METHODS[name].Settings.__dataclass_fields__))
        with pytest.raises(InputError, match=f"{name}: setting '{known}_' is unknown. Did you mean '{known}'"):
            make(name, **{f"{known}_": 8})


@pytest.mark.parametrize("name", LEARNED)
class TestLearned:
    def test_it_is_not_worse_than_nearest_on_the_calibration_images(self, name, images):
        learned, records = calibrated(name, images, steps=200)
        nearest, _ = calibrated("nearest_mse", images)  # at all widths, FP activations included
        for phase in make(name).phases():  # at the lowest width that it learns
            width = min(phase.widths)
            assert error(learned, images, width) < error(nearest, images, width)
            # and part by part, on what the quantized parts before it give
            parts = [record for record in records if str(width) in record["error_before"]]
            before, after = (sum(r[key][str(width)] for r in parts) for key in ("error_before", "error_after"))
            assert after < before * (1 if phase.power == 2 else 1.01), (
                "the record has squared errors, whatever is learned"
            )

    def test_r_of_adaptive_rounding_is_0_or_1_and_one_for_all_widths(self, name, images):
        if not issubclass(METHODS[name], AdaptiveReconstruction):
            pytest.skip("another relaxation")
        for layer in calibrated(name, images)[0].layers:
            assert layer.rounding.shape == (1, *layer.weight.shape)
            assert set(layer.rounding.unique().tolist()) <= {0, 1}

    def test_another_seed_gives_another_model(self, name, images):
        assert not same(calibrated(name, images, seed=0)[0], calibrated(name, images, seed=1)[0])

    def test_a_killed_run_continues_to_the_identical_result(self, name, images, tmp_path):
        whole, records = calibrated(name, images)
        path = tmp_path / "unfinished.safetensors"

        class Killed(Exception):
            pass

        def kill(unit, steps, loss):
            if unit.startswith("blocks.1"):
                raise Killed

        method = make(name)
        model = toy_model(method.widths)
        with pytest.raises(Killed):
            method.calibrate(model, images, 0, Checkpoint(path), kill)
        resumed = toy_model(method.widths)
        checkpoint = Checkpoint(path)
        assert method.calibrate(resumed, images, 0, checkpoint, lambda *_: None) == records
        assert checkpoint.earlier > 0, "the seconds before the kill count too"
        assert same(whole, resumed)


def test_weights_and_their_steps_are_frozen(images):
    model, _ = calibrated("ptmq", images)
    start = toy_model()
    start.search_steps(images, "shrink")
    for learned, before in zip(model.layers, start.layers, strict=True):
        assert torch.equal(learned.weight, before.weight) and torch.equal(learned.step, before.step)
    steps = [(str(w), q.step[w].item()) for q in model.quantizers for w in q.step]
    assert steps != [(str(w), q.step[w].item()) for q in start.quantizers for w in q.step]


@pytest.mark.parametrize("case", ["1", "2", "3", "none"])
@pytest.mark.parametrize("gd", ["figure1", "later", "none"])
def test_every_reading_of_ptmq_runs(case, gd, images):
    model, records = calibrated("ptmq", images, mfm=case, gd=gd, steps=5)
    assert [record["unit"] for record in records] == ["stem", "blocks.0", "blocks.1", "head"]
    assert error(model, images) < float("inf")


@pytest.mark.parametrize("settings, message", [
    ({"lambdas": [0.5, 0.5, 0.5]}, "lambdas must be numbers that sum to 1. Got \\(0.5, 0.5, 0.5\\)"),
    ({"lambdas": [0.4, 0.3, "x"]}, "setting 'lambdas' must be tuple"),
    ({"lr_rounding": "fast"}, "setting 'lr_rounding' must be float"),
    ({"lambdas": [1.0]}, "ptmq: lambdas must be 3 numbers, as many as groups"),
    ({"gammas": [1, 1, -1]}, "gammas must be numbers of 0 or more"),
    ({"mfm": "4"}, "mfm '4' is unknown. Known: 1, 2, 3, none."),
    ({"mfm": 4}, "mfm '4' is unknown"),
    ({"mfm": [3]}, "setting 'mfm' must be str, like its default '3'. Got \\[3\\]."),
    ({"gd": "figure"}, "gd 'figure' is unknown. Did you mean 'figure1'"),
    ({"initial_v": "mode"}, "initial_v 'mode' is unknown"),
    ({"steps": 0}, "steps must be at least 1. Got 0."),
    ({"steps": "many"}, "setting 'steps' must be int, like its default"),
    ({"warmup": 1.0}, "warmup must be in \\[0, 1\\). Got 1.0."),
    ({"keep": 1.5}, "keep must be a probability in \\[0, 1\\]. Got 1.5."),
    ({"edge_bits": 1}, "edge_bits must be 2..8. Got 1."),
    ({"step_size_search": "mse"}, "step_size_search 'mse' is unknown. Known: minmax, shift, shrink."),
    ({"beta_start": 1.0, "beta_end": 2.0}, "beta_start, beta_end must be falling and positive"),
])  # fmt: skip
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        make("ptmq", **settings)


def test_numbers_may_be_written_with_an_exponent():
    assert make("ptmq", lr_rounding="1e-3").settings.lr_rounding == 1e-3


def test_minmax_has_nothing_to_search():
    assert make("nearest_minmax").settings.step_size_search == "minmax"
    with pytest.raises(InputError, match="step_size_search must be minmax. Got 'shrink'."):
        make("nearest_minmax", step_size_search="shrink")


def test_ptmq_needs_groups():
    with pytest.raises(InputError, match="ptmq needs bit groups"):
        create("ptmq", {}, GROUPS.widths)


@pytest.mark.parametrize("groups, settings", [
    (BitGroups(("W3A3", "W4A4", "W5A5"), ("W6A6", "W7A7", "W8A8")), {"lambdas": [0.5, 0.5], "gammas": [1, 1]}),
    (BitGroups(("W3A3",), ("W4A4",), ("W5A5", "W6A6"), ("W7A7", "W8A8")), {"lambdas": [0.25] * 4, "gammas": [1] * 4}),
])  # fmt: skip
@pytest.mark.parametrize("gd", ["figure1", "later", "none"])
@pytest.mark.parametrize("mfm", ["1", "2", "3", "none"])
def test_ptmq_takes_two_to_four_groups(groups, settings, gd, mfm, images):
    method = create("ptmq", {"steps": 3, "gd": gd, "mfm": mfm, **settings}, groups.widths, groups)
    model = toy_model()
    method.calibrate(model, images, 0, None, lambda *_: None)
    assert error(model, images) < 1


def test_rounding_per_width_learns_one_r_a_width(images):
    model, _ = calibrated("ptmq", images, shared_rounding=False)
    shared, _ = calibrated("ptmq", images)
    layer, other = model.units[1].layers[0], shared.units[1].layers[0]
    assert layer.rounding.shape == (6, *layer.weight.shape) and other.rounding.shape == (1, *layer.weight.shape)
    assert not torch.equal(layer.rounding[0], layer.rounding[-1])
    assert error(model, images) < error(calibrated("nearest_mse", images)[0], images)


def test_rounding_per_width_leaves_the_widths_alone_that_a_step_does_not_draw():
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    steps = {bits: torch.full((3, 1), 4 / 2**bits) for bits in (3, 4)}
    rounding = RoundingPerWidth(weight, steps, {3: torch.full((3, 1), 4.0), 4: torch.full((3, 1), 8.0)}, "lowest")
    (rounding.soft([3])[3].square().sum() + rounding.regularizer(4.0)).backward()
    assert rounding.each["3"].v.grad.abs().sum() > 0 and rounding.each["4"].v.grad is None
    assert torch.equal(rounding.hard()[1], rounding.each["4"].hard()[0])


def test_a_broken_plug_in_leaves_the_others(monkeypatch):
    monkeypatch.setattr(methods, "BROKEN", {"baselines.mine": "SyntaxError: invalid syntax (mine.py, line 1)"})
    assert create("nearest_mse", {}, [W3]).name == "nearest_mse"
    with pytest.raises(InputError, match="method 'mine' is unknown, and these modules could not be imported: .*line 1"):
        create("mine", {}, [W3])


def test_nan_is_found_where_it_arises(images):
    method = make("ptmq")
    model = toy_model()
    model.search_steps(images, "minmax")
    images[3] = torch.nan
    with pytest.raises(InputError, match="unit 'stem': the reconstruction loss is nan"):
        reconstruct(model, images, method.phases(), seed=0)


def test_layer_by_layer_a_method_learns_the_step_sizes_that_follow_its_layers(images):
    """All but those behind a residual sum, which belong to no layer."""

    class LayerDrop(METHODS["qdrop"]):
        def parts(self, unit):
            return unit.by_layer()

    model, start = toy_model([W3]), toy_model([W3])
    LayerDrop({**QUICK, "steps": 5}, [W3]).calibrate(model, images, 0, None, lambda *_: None)
    start.search_steps(images, "shrink")
    names = [name for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)]
    moved = {name for name in names if not same(model.get_submodule(name), start.get_submodule(name))}
    assert {"units.0.graph.relu_quantizer", "units.1.graph.relu_1_quantizer"} <= moved and len(moved) == len(names) - 2


def test_a_name_is_given_once():
    class Other(METHODS["qdrop"]):
        name = "qdrop"

    with pytest.raises(
        InputError, match="method 'qdrop' is registered already, by baselines.qdrop. Give yours another"
    ):
        methods.register(Other)


@pytest.mark.parametrize("hook, message", [
    ({"loss": lambda self, target, outputs: outputs[0]}, "Wrong.loss must be a scalar. Got a tensor of shape"),
    ({"importance": lambda self, unit, later, features: features.target, "parts": lambda self, unit: unit.by_layer()},
     "Wrong.importance is for whole units"),
])  # fmt: skip
def test_a_wrong_hook_is_named(hook, message, images):
    method = type("Wrong", (METHODS["qdrop"],), hook)({**QUICK, "steps": 2}, [W3])
    with pytest.raises(InputError, match=message):
        method.calibrate(toy_model([W3]), images, 0, None, lambda *_: None)


def test_the_code_hash_covers_what_a_method_derives_from(tmp_path, monkeypatch):
    """A checkpoint of other code is never continued, the parent's included."""
    hashes = []
    for body in ("x = 1", "x = 2"):
        (tmp_path / "parent_of_a_method.py").write_text(f"class Parent:\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "parent_of_a_method", raising=False)
        importlib.invalidate_caches()
        parent = importlib.import_module("parent_of_a_method").Parent
        hashes.append(code_hash(type("Child", (METHODS["qdrop"], parent), {"__module__": "baselines.qdrop"})))
    assert hashes[0] != hashes[1]


def test_the_record_shows_how_far_the_rounding_was_pushed(images):
    _, records = calibrated("ptmq", images, steps=200)
    for record in records:
        before, after = record["h_before"], record["h_after"]
        assert sum(before) == sum(after) > 0 and len(before) == 20
        assert after[0] + after[-1] > before[0] + before[-1], "h(V) ends nearer to 0 and 1"
    _, records = calibrated("flexround", images)
    assert all(record["h_before"] == [] for record in records)


def test_autocast_learns_in_bfloat16_and_is_off_by_default(images):
    from dataclasses import asdict

    plain, _ = calibrated("qdrop", images, steps=20)
    halved, _ = calibrated("qdrop", images, steps=20, autocast=True)
    assert not asdict(create("qdrop", {}, ["W4A4"]).settings)["autocast"]
    steps = [
        torch.stack([layer.step for layer in model.layers if layer.step.numel() == 8]) for model in (plain, halved)
    ]
    assert torch.equal(*steps), "weights' step sizes are searched in float32"
    learned = [torch.cat([p.data for q in model.quantizers for p in q.step.values()]) for model in (plain, halved)]
    assert not torch.equal(*learned)
    torch.testing.assert_close(*learned, rtol=0.05, atol=0)
