"""The contract of every registered method, on a toy; a new method is found here by itself."""

from functools import cache

import pytest
import torch

from ptmq.api import load_model, save_model
from ptmq.common.bits import FULL_PRECISION
from ptmq.common.errors import InputError
from ptmq.data.images import ImagesInMemory
from ptmq.methods.interface import METHODS, Task, create, discover
from ptmq.methods.label_training import TrainedMethod
from ptmq.methods.reconstruction import Reconstruction
from ptmq.network.trace import NORMS
from ptmq.quantization.weight_quantizer import RoundedWeightQuantizer
from ptmq.reconstruction.engine import ResumeFile
from ptmq.reconstruction.passes import AdaptiveRoundingPass
from tests.toys import (
    CPU,
    GROUPS,
    W3,
    error,
    feature_error,
    is_hard,
    logits,
    on_the_grid,
    same_state,
    searched_model,
    toy_images,
    toy_model,
    toy_network,
)

discover()
QUICK = {"iterations": 12, "batch_size": 8}
LEARNED = sorted(name for name, method in METHODS.items() if issubclass(method, Reconstruction))
TRAINED = sorted(name for name, method in METHODS.items() if issubclass(method, TrainedMethod))


class Interrupted(Exception):
    """Raised in the middle of a calibration."""


def make(name: str, **settings):
    """A method with few iterations; a multi-width one for all widths, a single-width one for W3A3."""
    cls = METHODS[name]
    quick = QUICK if name in LEARNED else {"epochs": 1} if name in TRAINED else {}
    return create(name, {**quick, **settings}, [W3] if cls.per_width else GROUPS.widths, GROUPS)


def calibrated(name: str, images, seed: int = 0):
    """The toy calibrated by a method that needs no labels, the records of its units, the iterations that it told of."""
    method, told = make(name), []
    model = toy_model(method.widths)
    records = method.calibrate(model, images, seed, progress=lambda unit, iterations, loss: told.append(iterations))
    return model, records, sum(told)


def fit(name: str, folder, seed: int = 5):
    """The method, the model that it makes of the toy, and its record."""
    x = toy_images()
    labelled = ImagesInMemory(x.repeat(4, 1, 1, 1), torch.arange(4 * len(x)) % 4, (0.0,), (1.0,))
    resume = ResumeFile(folder / "unfinished.safetensors")
    task = Task(toy_network(), ("blocks.*",), labelled, torch.arange(len(x)), seed, CPU, resume, name)
    method = make(name)
    model, record = method.fit(task)
    for path in folder.glob("unfinished*"):
        path.unlink()
    return method, model, record


@cache
def fitted(name: str, folder):
    """`fit`, once for the tests that only look."""
    return fit(name, folder)


@pytest.fixture(scope="module")
def whole():
    """What a method calibrates with seed 0, once for the tests that compare with it; by its name."""
    return cache(lambda name: calibrated(name, toy_images()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fits")


@pytest.mark.parametrize("name", sorted(METHODS))
class TestContract:
    def test_it_describes_itself_in_a_line(self, name):
        line = (METHODS[name].__doc__ or "").strip().splitlines()[0]
        assert METHODS[name].name == name and 20 < len(line) <= 120 and line.endswith(".")

    def test_hard_weights_lie_on_the_grid(self, name, folder):
        _, model, _ = fitted(name, folder)
        layers = list(model.layers)
        for layer in layers:
            if isinstance(layer.quantizer, RoundedWeightQuantizer):
                assert layer.quantizer.relaxation is None
                assert all(on_the_grid(layer, bits) for bits in layer.quantizer.widths)
            else:  # of its own kind: never more values than codes, in each channel
                layer.set_bits(3)
                values = [channel.unique() for channel in layer.quantizer(layer.weight)]
                assert layer in (layers[0], layers[-1]) or max(map(len, values)) <= 8

    def test_floating_point_is_untouched(self, name, folder, images):
        _, model, _ = fitted(name, folder)
        moved = error(model, images, FULL_PRECISION)
        assert moved > 1e-6 if name in TRAINED else moved < 1e-9, "only training moves the network"

    def test_every_width_is_another_network(self, name, folder, images):
        method, model, _ = fitted(name, folder)
        assert model.widths == tuple(method.widths)
        outputs = [logits(model, images, width) for width in (*method.widths, FULL_PRECISION)]
        assert len({tuple(out.flatten().tolist()) for out in outputs}) == len(outputs)

    def test_the_same_seed_gives_the_same_model(self, name, folder, tmp_path):
        state = torch.random.get_rng_state()
        _, one, record = fitted(name, folder)
        _, two, again = fit(name, tmp_path)
        assert same_state(one, two) and record == again
        assert torch.equal(torch.random.get_rng_state(), state), "drew from the global generator"

    def test_nothing_of_the_learning_is_left(self, name, folder, images):
        _, model, _ = fitted(name, folder)
        assert torch.equal(logits(model, images, W3), logits(model, images, W3)), "a drop is still on"
        assert not any(module.training for module in model.modules() if isinstance(module, NORMS))

    def test_it_is_saved_and_loaded_bit_for_bit(self, name, folder, registered_toy, images, tmp_path):
        method, model, _ = fitted(name, folder)
        save_model(tmp_path, model, registered_toy, method, {"note": 1})
        loaded, info = load_model(tmp_path)
        assert info["note"] == 1 and type(loaded) is type(model)
        for mode in model.modes:
            for m in (model, loaded):
                m.set_mode(mode)
            for width in method.widths:
                one, two = (logits(m, images, width) for m in (model, loaded))
                assert torch.equal(one, two) and one.isfinite().all()
        model.set_mode("")

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
    def test_it_is_better_than_nearest_on_the_calibration_images(self, name, images):
        method = make(name, iterations=40)
        learned, nearest = toy_model(method.widths), searched_model(images)
        records = method.calibrate(learned, images, 0)
        for hooks in method.passes():  # at the lowest width that it learns
            width = min(hooks.widths)
            assert feature_error(learned, images, width) < feature_error(nearest, images, width)
            # and part by part, on what the quantized parts before it give; the record has squared errors, whatever is
            # learned
            parts = [record for record in records if str(width) in record["error_before"]]
            before, after = (sum(r[key][str(width)] for r in parts) for key in ("error_before", "error_after"))
            assert after < before * (1 if hooks.power == 2 else 1.01)

    def test_r_of_adaptive_rounding_is_0_or_1_and_one_for_all_widths(self, name, folder):
        method, model, _ = fitted(name, folder)
        if any(type(hooks).relax is AdaptiveRoundingPass.relax for hooks in method.passes()):
            for layer in model.layers:
                rounding = layer.quantizer.rounding
                assert len(rounding) == 1 and set(rounding.unique().tolist()) == {0, 1}

    def test_another_seed_gives_another_model(self, name, images, whole):
        assert not same_state(whole(name)[0], calibrated(name, images, 1)[0])

    def test_an_interrupted_run_ends_hard_and_continues_to_the_identical_result(self, name, images, whole, tmp_path):
        expected, records, _ = whole(name)
        path = tmp_path / "unfinished.safetensors"

        def interrupt(unit, iterations, loss):
            if unit.startswith("blocks.1"):
                raise Interrupted

        method = make(name)
        interrupted, resumed = toy_model(method.widths), toy_model(method.widths)
        with pytest.raises(Interrupted):
            method.calibrate(interrupted, images, 0, resume=ResumeFile(path), progress=interrupt)
        assert is_hard(interrupted)
        resume = ResumeFile(path)
        assert method.calibrate(resumed, images, 0, resume=resume) == records
        assert resume.earlier > 0, "the seconds before the interruption count, too"
        assert same_state(expected, resumed)

    def test_progress_is_told_what_was_counted(self, name, whole):
        model, _, told = whole(name)
        assert told == make(name).count_iterations(model) > 0
