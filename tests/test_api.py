"""The public face, on networks that the suite does not know; the page that tells of it is run word by word."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ptmq
from ptmq import api
from ptmq.common.errors import InputError
from ptmq.common.provenance import closure

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/library.md").read_text()
QUICK = {"iterations": 2, "batch_size": 4, "progress": False}


class SmallCNN(nn.Module):
    """A convolution used twice, an activation in place: (n, 3, 8, 8) -> (n, 5)."""

    def __init__(self, depthwise: bool = False):
        super().__init__()
        groups = 8 if depthwise else 1
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.shared, self.relu = nn.Conv2d(8, 8, 3, padding=1, groups=groups), nn.ReLU(inplace=True)
        self.classifier = nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x)
        x = x + self.relu(self.shared(x))
        x = x + self.relu(self.shared(x))
        return self.classifier(x.mean((2, 3)))


def small(**options) -> SmallCNN:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SmallCNN(**options)


@pytest.fixture
def pixels():
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits(model, x, bits: int = 4):
    model.set_bits(bits, bits)
    return model(x)


@pytest.fixture(scope="module")
def model():
    x = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return ptmq.calibrate(small(), x, widths="W3A3..W8A8", **QUICK)


# ---------------------------------------------------------------- the page
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/library.md", "exec"), names)
    assert "first layer" in capsys.readouterr().out, "the coverage is printed"
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(logits(names["model"], x), logits(names["same"], x))
    plain = names["network"].eval()(x).detach()
    torch.testing.assert_close(logits(names["converted"], x, 32), plain, rtol=0, atol=1e-4 * float(plain.abs().max()))


def test_arguments_on_the_page_are_those_of_calibrate():
    from inspect import signature

    table = PAGE.partition("argument of `calibrate`")[2].partition("\n## ")[0]
    named = {name for line in table.splitlines() for name in re.findall(r"^\| `(\w+)`", line)}
    assert named <= set(signature(api.calibrate).parameters) and {"groups", "blocks", "resume"} <= named


# ---------------------------------------------------------------- the package
def test_importing_the_package_is_fast_and_makes_nothing_depend_on_all_of_it():
    code = "import sys, ptmq; assert not {'torch', 'numpy'} & set(sys.modules); ptmq.InputError; assert 'calibrate' in dir(ptmq)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    names = {path.name for path in closure("ptmq.data.datasets")}
    assert "api.py" not in names and "engine.py" not in names
    with pytest.raises(AttributeError, match="has no attribute 'calibrat'"):
        ptmq.calibrat  # noqa: B018


def test_all_public_names_are_there():
    assert all(getattr(ptmq, name) is not None for name in ptmq.__all__)
    stub = (ROOT / "ptmq/__init__.pyi").read_text()
    assert set(re.findall(r"import (\w+) as", stub)) == set(ptmq.__all__)


# ---------------------------------------------------------------- calibrate
def test_it_switches_and_every_weight_is_told(model, pixels):
    assert [str(width) for width in model.widths] == [f"W{bits}A{bits}" for bits in range(3, 9)]
    at = {bits: logits(model, pixels, bits) for bits in (3, 8, 32)}
    far, near = ((at[bits] - at[32]).abs().mean() for bits in (3, 8))
    assert 0 < near < far
    weights = {row.layer for row in model.coverage() if row.is_quantized}
    assert weights == {"first.0", "shared", "shared_2", "classifier"} and model.coverage().share == 1
    model.set_bits(3, 3, unit=next(unit.name for unit in model.units if unit.name == "shared"))


def test_nothing_asks_for_gradients(model, pixels):
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model(pixels).requires_grad and not model.training


def as_loader(x):
    return DataLoader(TensorDataset(x, torch.zeros(len(x))), batch_size=5)


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x.split(7))


@pytest.mark.parametrize("given", [
    as_loader,
    lambda x: list(x.split(9)),
    lambda x: ((part, None) for part in x.split(9)),
    lambda x: [{"not": "reached"}] and [x, torch.ones(1)],  # what is behind the last image that is needed is not read
    lambda x: TensorDataset(x, torch.zeros(len(x))),
    Stream,
    lambda x: x.double(),
])  # fmt: skip
def test_images_may_be_given_in_any_way(given, pixels):
    assert torch.equal(api.gathered(given(pixels), 24), pixels)
    assert torch.equal(api.gathered(given(pixels), 11), pixels[:11])


def test_an_endless_loader_is_read_as_far_as_needed(pixels):
    def endless():
        while True:
            yield pixels

    assert len(api.gathered(endless(), 50)) == 50


def test_the_same_arguments_give_the_same_model(pixels):
    """Also where the loader shuffles, whatever was drawn before."""
    shuffled = DataLoader(pixels, batch_size=4, shuffle=True)
    one = ptmq.calibrate(small(), shuffled, widths="W4A4..W6A6", calibration_images=12, **QUICK)
    torch.rand(5)
    two = ptmq.calibrate(small(), shuffled, widths="W4A4..W6A6", calibration_images=12, **QUICK)
    other = ptmq.calibrate(small(), shuffled, widths="W4A4..W6A6", calibration_images=12, seed=1, **QUICK)
    assert torch.equal(logits(one, pixels), logits(two, pixels))
    assert not torch.equal(logits(one, pixels), logits(other, pixels))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_nothing_that_is_given_changes(dtype, training, pixels):
    network = small().to(dtype).train(training)
    network.shared.weight.requires_grad_(False)
    network.classifier.weight.grad = torch.ones_like(network.classifier.weight)
    before, x = copy.deepcopy(network), pixels.to(dtype)
    random, given = torch.get_rng_state(), x.clone()
    loader = as_loader(x)  # which draws from the global generator when it is read
    with torch.no_grad():
        model = ptmq.calibrate(network, loader, "nearest_mse", "W4A4", progress=False)
    assert torch.equal(random, torch.get_rng_state()) and torch.equal(x, given)
    assert [module.training for module in network.modules()] == [module.training for module in before.modules()]
    for (name, now), then in zip(network.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then) and now.dtype == dtype and now.requires_grad == (name != "shared.weight")
    for now, then in zip(network.buffers(), before.buffers(), strict=True):
        assert torch.equal(now, then)
    assert torch.equal(network.classifier.weight.grad, torch.ones_like(network.classifier.weight))
    assert not network._forward_hooks and all(p.dtype == torch.float32 for p in model.parameters())


def test_it_learns_where_gradients_are_off(pixels):
    with torch.inference_mode():
        ptmq.calibrate(small(), pixels.clone(), "qdrop", "W4A4", **QUICK)


def test_depthwise_convolutions_get_settings_that_suit_them(pixels):
    settings = [
        api.method_for(small(depthwise=depthwise), "ptmq", given, None, None).settings.regularizer
        for depthwise, given in ((False, {}), (True, {}), (True, {"regularizer": 0.5}))
    ]
    assert settings == [0.01, 0.1, 0.5]


@pytest.mark.parametrize("widths, groups, expected", [
    ("W3A3..W8A8", None, [["W3A3", "W4A4"], ["W5A5", "W6A6"], ["W7A7", "W8A8"]]),
    ("W4A4..W7A7", None, [["W4A4"], ["W5A5"], ["W6A6", "W7A7"]]),
    (["W4A8", "W8A8"], None, [["W4A8"], ["W8A8"]]),
    (None, [["W3A3"], ["W8A8"]], [["W3A3"], ["W8A8"]]),
    (None, {"low": ["W3A3"], "high": ["W4A4", "W8A8"]}, [["W3A3"], ["W4A4", "W8A8"]]),
])  # fmt: skip
def test_widths_are_grouped(widths, groups, expected):
    method = api.method_for(small(), "ptmq", {}, widths, groups)
    assert [list(map(str, group)) for group in method.groups.groups] == expected
    assert len(method.settings.lambdas) == len(expected) and sum(method.settings.lambdas) == pytest.approx(1)


def test_what_stays_in_floating_point_is_named(pixels):
    model = ptmq.calibrate(
        small(), pixels, "nearest_mse", "W4A4", keep_fp=["shared*"], rules={"first.*": "W6"}, progress=False
    )
    bits = {row.layer: row.bits for row in model.coverage()}
    assert bits["shared"] == (32,) and bits["first.0"] == (6,) and bits["classifier"] == (8,)


MISTAKES = {
    "no network": ({"network": "resnet18"}, "network must be a torch.nn.Module. Got a str."),
    "a method that trains": ({"method": "robustquant"}, "robustquant trains with labels"),
    "a method that re-estimates": ({"method": "adaptive_bn"}, "re-estimates BatchNorm on training images at every"),
    "an unknown method": ({"method": "ptmg"}, "method 'ptmg' is unknown. Did you mean 'ptmq'"),
    "an unknown setting": ({"iteration": 5}, "setting 'iteration' is unknown. Did you mean 'iterations'"),
    "a setting of another method": ({"method": "nearest_mse", "keep": 1.0}, "nearest_mse: setting 'keep' is unknown"),
    "widths that are none": ({"widths": "4 bit"}, "width '4 bit' must look like W4A4"),
    "a range down": ({"widths": "W8A8..W3A3"}, "must go up alike in weights and activations"),
    "no widths": ({"widths": []}, "widths must name at least one"),
    "one width for ptmq": ({"widths": "W4A4"}, "ptmq needs bit groups"),
    "several for a method of one": ({"method": "qdrop"}, "qdrop calibrates one width at a time"),
    "widths that are not the groups'": ({"widths": "W3A3..W4A4", "groups": [["W3A3"], ["W8A8"]]}, "widths of its groups"),
    "integers": ({"images": torch.zeros(4, 3, 8, 8, dtype=torch.uint8)}, "floating-point numbers, prepared as the"),
    "no images": ({"images": []}, "images are empty"),
    "a number": ({"images": 5}, "images must be a tensor, or an iterable of batches. Got a int"),
    "dictionaries": ({"images": [{"x": 1}]}, "a batch must be a tensor .* Got a dict"),
    "images of several sizes": ({"images": [torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 9, 9)]}, "must be of one shape"),
    "no calibration images": ({"calibration_images": 0}, "calibration_images must be at least 1. Got 0."),
    "an unknown block": ({"blocks": ["layer1.*"]}, "no module of the .* matches its blocks layer1"),
    "an unknown layer": ({"keep_fp": ["shard"]}, "keep_fp: layer 'shard' is unknown. Did you mean 'shared'"),
    "an unknown device": ({"device": "gpu"}, "device 'gpu' cannot be used"),
    "an unknown execution": ({"execution": {"compil": True}}, "execution: setting 'compil' is unknown"),
    "images of NaN": ({"images": torch.full((4, 3, 8, 8), torch.nan)}, "NaN"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake, pixels):
    changes, message = MISTAKES[mistake]
    with pytest.raises(InputError, match=message):
        ptmq.calibrate(**({"network": small(), "images": pixels, "progress": False} | changes))


class Tokens(nn.Module):
    """Patches of NHWC features by views, as in a Swin transformer: (n, 3, 8, 8) -> (n, 5)."""

    def __init__(self):
        super().__init__()
        self.patches, self.mix = nn.Conv2d(3, 8, 1), nn.Linear(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        x = self.patches(x).permute(0, 2, 3, 1)  # (n, 8, 8, 8)
        x = x.contiguous().view(x.shape[0], 4, 2, 4, 2, 8).permute(0, 1, 3, 2, 4, 5).contiguous()
        x = x.view(x.shape[0], 4, 4, 32)
        x = x + self.mix(x)
        return self.head(x.view(x.shape[0], 16, 32).mean(1))


def test_features_may_lie_in_memory_as_is_fastest(pixels):
    model = ptmq.calibrate(Tokens(), pixels, "qdrop", "W8A8", **QUICK)
    x = pixels.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(logits(model, x, 8), logits(model, pixels, 8), rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------- resume
def test_an_interrupted_calibration_goes_on_and_another_is_refused(tmp_path, pixels, monkeypatch):
    from ptmq.reconstruction import engine

    class Interrupted(Exception):
        pass

    def calibrate(**changes):
        given = {"network": small(), "images": pixels, "widths": "W4A4..W6A6", "resume": tmp_path / "r.safetensors"}
        return ptmq.calibrate(**{**given, **QUICK, **changes})

    learn, count = engine.learn, []

    def interrupted(learner, progress):
        count.append(learner.unit.name)
        if len(count) == 3:
            raise Interrupted
        return learn(learner, progress)

    monkeypatch.setattr(engine, "learn", interrupted)
    with pytest.raises(Interrupted):
        calibrate()
    monkeypatch.setattr(engine, "learn", lambda learner, progress: count.append("again") or learn(learner, progress))
    other = small()
    other.shared.weight.data[0] += 1
    for change, what in (({"network": other}, "network"), ({"images": pixels + 1}, "images"), ({"seed": 1}, "seed"),
                         ({"iterations": 3}, "settings"), ({"widths": "W4A4..W7A7"}, "settings")):  # fmt: skip
        with pytest.raises(InputError, match=f"is of another calibration, of other .*{what}.* Delete it, or give"):
            calibrate(**change)
    model = calibrate()
    assert count.count("again") == len(list(model.units)) - 2, "two units were done"
    assert not (tmp_path / "r.safetensors").exists(), "what is finished needs none"
    assert torch.equal(logits(model, pixels), logits(calibrate(), pixels))


@pytest.mark.parametrize("error, told", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
    (MemoryError(), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
    (RuntimeError("Some tensors share memory, this will lead to duplicate memory on disk"), False),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
])  # fmt: skip
def test_out_of_memory_is_told_for_that_alone(error, told, pixels, monkeypatch):
    from ptmq.methods.reconstruction import Reconstruction

    def calibrate(*args, **options):
        raise error

    monkeypatch.setattr(Reconstruction, "calibrate", calibrate)
    message = "cpu is out of memory while qdrop calibrates SmallCNN. Lower batch_size .4. or calibration_images .24."
    with pytest.raises(InputError if told else type(error), match=message if told else str(error)[:20]):
        ptmq.calibrate(small(), pixels, "qdrop", "W4A4", **QUICK)


# ---------------------------------------------------------------- save and load
@pytest.mark.parametrize("network", [SmallCNN, small(), lambda: small().train()])
def test_a_saved_model_is_the_same(network, model, pixels, tmp_path):
    ptmq.save(model, tmp_path / "model")
    random = torch.get_rng_state()
    loaded = ptmq.load(str(tmp_path / "model"), network=network)
    assert torch.equal(random, torch.get_rng_state())
    for bits in (3, 8, 32):
        assert torch.equal(logits(model, pixels, bits), logits(loaded, pixels, bits))
    assert loaded.coverage() == model.coverage()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    ptmq.save(loaded, tmp_path / "again")
    assert (tmp_path / "again/model.json").read_text() == (tmp_path / "model/model.json").read_text()


@pytest.mark.parametrize("ties", ["even", "up"])
def test_a_model_rounds_ties_as_it_was_calibrated_and_upwards_where_it_is_older_than_the_choice(ties, pixels, tmp_path):
    model = ptmq.calibrate(small(), pixels, "nested", ["W3A3", "W7A7"], iterations=0, ties=ties, progress=False)
    ptmq.save(model, tmp_path)
    saved = json.loads((tmp_path / "model.json").read_text())
    assert saved["model"]["ties"] == ties
    assert torch.equal(logits(ptmq.load(tmp_path, small()), pixels, 7), logits(model, pixels, 7))
    del saved["model"]["ties"]
    (tmp_path / "model.json").write_text(json.dumps(saved))
    older = torch.equal(logits(ptmq.load(tmp_path, small()), pixels, 7), logits(model, pixels, 7))
    assert older == (ties == "up")


def test_rules_and_blocks_are_saved(pixels, tmp_path):
    options = {"keep_fp": ["shared"], "rules": {"first.*": "W6"}, "blocks": ["first", "classifier"], "progress": False}
    model = ptmq.calibrate(small(), pixels, "nearest_mse", "W4A4", **options)
    ptmq.save(model, tmp_path)
    loaded = ptmq.load(tmp_path, SmallCNN)
    assert loaded.coverage() == model.coverage() and torch.equal(logits(model, pixels), logits(loaded, pixels))
    assert [unit.name for unit in loaded.units] == [unit.name for unit in model.units]


def test_a_folder_says_what_it_needs(model, tmp_path):
    ptmq.save(model, tmp_path)
    said = json.loads((tmp_path / "model.json").read_text())["model"]
    assert said["network"] == "SmallCNN" and said["calibration"]["method"] == "ptmq"
    with pytest.raises(InputError, match="is of SmallCNN, which is no registered backbone. Give network="):
        ptmq.load(tmp_path)
    with pytest.raises(InputError, match="must be, or give, a torch.nn.Module. Got a int"):
        ptmq.load(tmp_path, network=lambda: 5)
    with pytest.raises(InputError, match="does not fit"):
        ptmq.load(tmp_path, network=nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 5)))


# ---------------------------------------------------------------- convert
def test_a_converted_network_is_equal_at_floating_point(pixels, tmp_path):
    network = small().train()
    model = ptmq.convert(network, pixels[:3], widths="W4A4..W8A8")
    assert network.training and not model.training
    expected = network.eval()(pixels).detach()
    torch.testing.assert_close(logits(model, pixels, 32), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    errors = [float((logits(model, pixels, bits) - expected).square().mean()) for bits in (4, 8)]
    assert 0 < errors[1] < errors[0] < float(expected.var()), "at a width it is rounded, and not nonsense"
    ptmq.save(model, tmp_path)
    assert ptmq.load(tmp_path, small).coverage() == model.coverage()
