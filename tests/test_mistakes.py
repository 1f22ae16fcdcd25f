"""What a person sees for a mistake: one sentence that names the field, the rule, the value and the way out.

Each case is a command line of `python -m ptmq` or, where the mistake is in a running job, one that a broken world runs
into. None of them may end in a traceback.
"""

import copy
import json
import resource
from pathlib import Path

import pytest
import torch
import yaml
from torch._inductor.exc import InvalidCxxCompiler

from ptmq.cli import main
from ptmq.common.files import save_tensors
from ptmq.data import cifar10
from ptmq.models.zoo import BACKBONES
from ptmq.reconstruction.engine import Learner
from ptmq.suite.profile import Run
from tests.toys import ROOT, random_network

DIGITS = yaml.safe_load((ROOT / "workflow/config/digits.yaml").read_text())
DIGITS["methods"] |= {"adaround": {"per_width": True}, "brecq": {"per_width": True}, "qdrop": {"per_width": True}}
WIDTHS = ("W3A3", "W5A5", "W8A8")
RUN = Run("p", "digits", "digits_resnet", "ptmq", "default", WIDTHS,
          {"low": ["W3A3"], "medium": ["W5A5"], "high": ["W8A8"]}, 0, {"iterations": 1}, {}, 32)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with weights and a calibrated model of the digits' ResNet, whole and broken ones."""
    folder = tmp_path_factory.mktemp("world")
    state = random_network(BACKBONES["digits_resnet"].network).state_dict()
    save_tensors(folder / "weights.safetensors", state, None)
    (folder / "cut.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:1000])
    nan = {key: value.clone() for key, value in state.items()}
    nan["layer1.0.conv1.weight"][0] = torch.nan
    save_tensors(folder / "nan.safetensors", nan, None)
    huge = {key: value.clone() for key, value in state.items()}
    huge["layer1.0.bn1.weight"].fill_(3.4e38)
    save_tensors(folder / "huge.safetensors", huge, None)
    (folder / "text.yaml").write_text("profile: [")
    (folder / "list.yaml").write_text("- a\n- b\n")
    run = ["quantize", "--spec", RUN.to_json(), "--weights", str(folder / "weights.safetensors")]
    assert main([*run, "--out", str(folder / "model")]) == 0
    for name, content in (("damaged", "{"), ("other", '{"a": 1}')):
        (folder / name).mkdir()
        (folder / name / "model.json").write_text(content)
    info = json.loads((folder / "model" / "model.json").read_text())
    (folder / "mixed_up").mkdir()
    info["model"]["backbone"] = "digits_vit"
    (folder / "mixed_up" / "model.json").write_text(json.dumps(info))
    (folder / "mixed_up" / "model.safetensors").write_bytes((folder / "model/model.safetensors").read_bytes())
    for name in cifar10.CIFAR_FILES:
        path = folder / "wrong" / cifar10.CIFAR_FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not CIFAR-10")
    (folder / "public").mkdir()
    (folder / "public" / BACKBONES["resnet20"].checkpoint.file).write_bytes(b"cut")
    subset = folder / "images" / "imagenet_subset"
    subset.mkdir(parents=True)
    (subset / "train.txt").write_text("a.jpeg 0\nb.jpeg one\n")
    return folder


def profile(path: str, value) -> list[str]:
    """`check` of the digits' profile with one value changed, given by its path."""
    content = copy.deepcopy(DIGITS)
    *parents, last = path.split("/")
    place = content
    for key in parents:
        place[key] = place.get(key) or {}
        place = place[key]
    place[last] = value
    return ["check", "--json", json.dumps(content)]


def setting(method: str, **values) -> list[str]:
    """`check` of the digits' profile with settings of one method."""
    return profile(f"methods/{method}/settings", values)


def quantize(**changes) -> list[str]:
    """`quantize` of a run that is right but for the changes; `weights` and `data` are of the command line."""
    weights, data = changes.pop("weights", "weights.safetensors"), changes.pop("data", None)
    run = json.loads(RUN.to_json()) | changes
    argv = ["quantize", "--spec", json.dumps(run), "--weights", f"{{world}}/{weights}", "--out", "{world}/new"]
    return argv + (["--data-dir", data] if data else [])


GROUPS = "backbones/digits_resnet/groups"
CASES: dict[str, tuple[list[str], str]] = {
    # ---- profiles
    "a key is misspelt": (profile("methds", {}), "key 'methds' is unknown. Did you mean 'methods'?"),
    "the dataset is unknown": (profile("dataset", "digit"), "dataset 'digit' is unknown. Did you mean 'digits'?"),
    "the method is unknown": (profile("methods/ptmg", {}), "method 'ptmg' is unknown. Did you mean 'ptmq'?"),
    "the backbone is unknown": (profile("backbones/digits_rest", {}), "backbone 'digits_rest' is unknown."),
    "the backbone is of another dataset": (profile("backbones/resnet20", {}), "'resnet20' is for dataset 'cifar10'"),
    "a seed is text": (profile("seeds", ["one"]), "seeds.0 must be a whole number. Got 'one'."),
    "training of a public network": (
        profile("backbones/digits_vit/training", {"epoch": 1}), "setting 'epoch' is unknown. Did you mean 'epochs'?"),
    "the optimizer is unknown": (
        profile("backbones/digits_vit/training", {"optimizer": "adma"}), "optimizer 'adma' is unknown."),
    # ---- widths and groups
    "a width of nine bits": (profile(f"{GROUPS}/low", ["W9A9"]), "weight bits must be 2..8, or 32"),
    "a width of one bit": (profile(f"{GROUPS}/low", ["W1A3"]), "weight bits must be 2..8, or 32"),
    "groups that overlap": (profile(f"{GROUPS}/low", ["W3A3", "W6A6"]), "bit groups must not overlap"),
    "five groups": (
        profile(GROUPS, {name: [f"W{bits}A{bits}"] for name, bits in zip("abcde", range(3, 8), strict=True)}),
        "groups must be a mapping of at most 4."),
    "the same width twice": (
        profile(f"{GROUPS}/low", ["W3A3", "W3A3"]), "groups.low must be a list without repetition."),
    "widths of ptmq that are not its groups": (
        profile("methods/ptmq/widths", ["W3A3"]), "ptmq calibrates the widths of its groups"),
    "all widths for a single-width method": (
        profile("methods/qdrop/per_width", False), "qdrop calibrates one width at a time. Got W3A3"),
    # ---- settings
    "a setting is misspelt": (
        setting("ptmq", iteration=3), "ptmq: setting 'iteration' is unknown. Did you mean 'iterations'?"),
    "an option of the execution as a setting": (setting("ptmq", compile=True), "ptmq: setting 'compile' is unknown."),
    "execution is misspelt": (profile("execution", {"compil": True}), "execution: key 'compil' is unknown."),
    "a setting of another type": (setting("ptmq", iterations="many"), "setting 'iterations' must be int, like its default"),
    "no iterations": (setting("ptmq", iterations=0), "iterations must be at least 1. Got 0."),
    "an empty batch": (setting("qdrop", batch_size=0), "batch_size must be at least 1. Got 0."),
    "a negative learning rate": (setting("ptmq", lr_rounding=-1.0), "lr_rounding must be 0 or more. Got -1.0."),
    "the decay is unknown": (setting("ptmq", lr_rounding_schedule="cosin"), "Did you mean 'cosine'?"),
    "a probability above 1": (setting("ptmq", keep=1.5), "keep must be a probability in [0, 1]. Got 1.5."),
    "λ that do not sum to 1": (setting("ptmq", lambdas=[0.5, 0.3, 0.3]), "lambdas must be numbers that sum to 1."),
    "too few λ": (setting("ptmq", lambdas=[0.5, 0.5]), "ptmq: lambdas must be 3 numbers, as many as groups."),
    "too many γ": (setting("ptmq", gammas=[1.0] * 4), "ptmq: gammas must be 3 numbers, as many as groups."),
    "a negative γ": (setting("ptmq", gammas=[1.0, -1.0, 1.0]), "gammas must be numbers of 0 or more."),
    "the mixer's case is unknown": (setting("ptmq", mfm="4"), "mfm '4' is unknown. Known: 1, 2, 3, none."),
    "the form of the GD-Loss is unknown": (setting("ptmq", gd="figure2"), "Did you mean 'figure1'?"),
    "the initial V is unknown": (setting("ptmq", initial_v="high"), "initial_v 'high' is unknown."),
    "a rising exponent": (setting("ptmq", beta_start=1.0), "beta_start, beta_end must be falling and positive."),
    "nothing but warm-up": (setting("ptmq", warmup=1.0), "warmup must be in [0, 1). Got 1.0."),
    "edges of nine bits": (setting("ptmq", edge_bits=9), "edge_bits must be 2..8. Got 9."),
    "the step-size search is unknown": (setting("ptmq", step_size_search="mse"), "step_size_search 'mse' is unknown."),
    "min-max with a search": (
        setting("nearest_minmax", step_size_search="shrink"), "step_size_search must be minmax. Got 'shrink'."),
    "AdaRound with dropping": (setting("adaround", keep=0.5), "keep must be 1 (AdaRound drops nothing). Got 0.5."),
    "BRECQ with negative iterations": (
        setting("brecq", activation_iterations=-1), "activation_iterations must be 0 or more."),
    "a schedule that is neither": (setting("multiquant", schedule="long"), "schedule 'long' is unknown."),
    "a negative kurtosis weight": (setting("robustquant", kurtosis_weight=-1.0), "kurtosis_weight must be 0 or more."),
    # ---- command lines
    "a profile that is not there": (["check", "--profile", "{world}/none.yaml"], "cannot be read: No such file"),
    "a profile that is not YAML": (["check", "--profile", "{world}/text.yaml"], "is not valid YAML"),
    "a profile that is a list": (["check", "--profile", "{world}/list.yaml"], "must be a mapping, such as"),
    "a run that is no JSON": (
        ["quantize", "--spec", "{", "--weights", "w", "--out", "o"], "run '{' is not a run in JSON"),
    "an override without a value": (
        ["train", "--backbone", "digits_vit", "--set", "epochs", "--out", "o"], "--set needs KEY=VALUE. Got 'epochs'."),
    "an option is missing": (["train", "--out", "o"], "--backbone is missing."),
    "several options are missing": (
        ["quantize", "--profile", "workflow/config/digits.yaml", "--out", "x"], "--backbone, --method are missing"),
    "no profile and no network": (["quantize", "--out", "x"], "--backbone is missing"),
    "a check of nothing": (["check"], "--profile is missing"),
    "a profile that is a folder": (["check", "--profile", "."], "profile '.' cannot be read: Is a directory"),
    "no repetitions": (["bench", "--repeats", "0"], "--repeats must be at least 1. Got 0."),
    "a case of the bench that there is not": (["bench", "--case", "resnet"], "--case 'resnet' is unknown."),
    "no threads": (["bench", "--threads", "0"], "--threads must be at least 1. Got 0."),
    "an override that is no YAML": (
        ["train", "--out", "x", "--backbone", "digits_resnet", "--set", "lr=[0.4"],
        "--set lr: '[0.4' is not a value in YAML"),
    "more in a batch than there is": (
        ["train", "--out", "x", "--backbone", "digits_resnet", "--set", "batch_size=5000"],
        "batch_size must be at most the 1000 images. Got 5000."),
    "weights that are text": (
        ["evaluate", "--out", "x", "--weights", str(ROOT / "README.md"), "--backbone", "resnet20"],
        "is not a whole safetensors file"),
    "neither model nor weights": (["evaluate", "--out", "o"], "give either --model"),
    "training where there is a checkpoint": (["train", "--backbone", "resnet20", "--out", "o"], "has public weights."),
    "a checkpoint where there is none": (["weights", "--backbone", "digits_vit", "--out", "o"], "Train it"),
    "no CUDA": (quantize(device="cuda"), "device is cuda, but torch finds no CUDA GPU. Set device: cpu, or auto."),
    # ---- data
    "more calibration images than there are": (
        quantize(calibration_images=1001), "at most the 1000 training images of 'digits'. Got 1001."),
    "no data and offline": (
        ["data", "--dataset", "cifar10", "--data-dir", "{world}/none", "--offline", "--out", "o"],
        "dataset 'cifar10' is not complete in"),
    "data with another hash": (
        ["data", "--dataset", "cifar10", "--data-dir", "{world}/wrong", "--offline", "--out", "o"],
        "not the official"),
    "a list with a class that is no number": (
        ["data", "--dataset", "imagenet_subset", "--data-dir", "{world}/images", "--out", "o"],
        "line 2, must be 'path class', the class a number from 0. Got 'b.jpeg one'."),
    "no ImageNet": (
        ["data", "--dataset", "imagenet", "--data-dir", "{world}/none", "--out", "o"], "has neither train.txt"),
    "no held-out images": (
        ["evaluate", "--weights", "{world}/weights.safetensors", "--backbone", "digits_resnet", "--split", "held",
         "--out", "o"], "split 'held' is unknown. Did you mean 'heldout'?"),
    # ---- weights and models
    "no weights": (quantize(weights="none.safetensors"), "cannot be read: no such file."),
    "weights that were cut off": (quantize(weights="cut.safetensors"), "is not a whole safetensors file"),
    "weights of another network": (quantize(backbone="digits_vit"), "They belong to another architecture."),
    "weights with NaN": (quantize(weights="nan.safetensors"), "hold NaN or infinity in 'layer1.0.conv1.weight'."),
    "activations that are infinite": (
        quantize(weights="huge.safetensors"), "unit 'layer1.0': the activation 'relu_1' is NaN or infinite"),
    "a checkpoint with another hash": (
        ["weights", "--backbone", "resnet20", "--weights-dir", "{world}/public", "--out", "o"],
        "The file is damaged or another one; delete it and run again."),
    "no checkpoint and offline": (
        ["weights", "--backbone", "resnet56", "--weights-dir", "{world}/none", "--offline", "--out", "o"],
        "offline is true. Point weights_dir"),
    "no model": (["evaluate", "--model", "{world}/none", "--out", "o"], "cannot be read: No such file"),
    "a damaged model": (["evaluate", "--model", "{world}/damaged", "--out", "o"], "is not valid JSON"),
    "a file that is no model": (
        ["evaluate", "--model", "{world}/other", "--out", "o"], "does not describe a calibrated model."),
    "a model of another network": (
        ["evaluate", "--model", "{world}/mixed_up", "--out", "o"], "does not fit backbone 'digits_vit'"),
    "outputs of another network": (
        ["evaluate", "--model", "{world}/model", "--fp-outputs", "{world}/weights.safetensors", "--out", "o"],
        "--fp-outputs must be of"),
    "a budget below the smallest": (
        ["mixed", "--model", "{world}/model", "--weights", "{world}/weights.safetensors", "--average-bits", "2",
         "--out", "o"], "average"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_told_in_a_sentence(case, world, tmp_path, monkeypatch, capsys):
    argv, message = CASES[case]
    if "CUDA" in case and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.chdir(tmp_path)
    assert main([part.replace("{world}", str(world)) for part in argv]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("error:") == 1 and "Traceback" not in said


# ---------------------------------------------------------------- a world that breaks while a job runs
def test_a_full_disk_is_told_and_what_is_finished_is_kept(world, tmp_path, capsys):
    """A limit on the size of files stands for the full disk: small files can still be written."""
    argv = [part.replace("{world}/new", str(tmp_path)).replace("{world}", str(world)) for part in quantize()]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        assert main(argv) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert "cannot be written" in said and "File too large" in said and "Make room" in said
    assert not [path for path in tmp_path.rglob("*") if path.is_file()], "no half of a file is left"


def test_a_results_folder_that_cannot_be_written_is_told(world, tmp_path, capsys):
    (tmp_path / "file").write_text("in the place of the folder")
    argv = [part.replace("{world}/new", f"{tmp_path}/file/run").replace("{world}", str(world)) for part in quantize()]
    assert main(argv) == 2
    assert "cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_out_of_memory_names_the_batch_size(error, world, tmp_path, monkeypatch, capsys):
    def iterate(learner):
        raise error

    monkeypatch.setattr(Learner, "iterate", iterate)
    argv = [part.replace("{world}/new", str(tmp_path)).replace("{world}", str(world)) for part in quantize()]
    assert main(argv) == 2
    assert "out of memory while ptmq calibrates digits_resnet. Lower batch_size (32)" in capsys.readouterr().err


def test_a_machine_without_a_compiler_is_told_of_compile(world, tmp_path, monkeypatch, capsys):
    """tests/e2e asks for one with no compiler; here the error is the one that torch raises then."""

    def iterate(learner):
        raise InvalidCxxCompiler

    monkeypatch.setattr(Learner, "iterate", iterate)
    argv = quantize(execution={"compile": True})
    assert main([part.replace("{world}/new", str(tmp_path)).replace("{world}", str(world)) for part in argv]) == 2
    said = capsys.readouterr().err
    assert "ptmq: compile: true, but torch.compile fails" in said and "Set compile: false." in said


def test_an_error_of_ours_keeps_its_traceback(world, tmp_path, monkeypatch):
    monkeypatch.setattr(Learner, "iterate", lambda learner: torch.ones(2) @ torch.ones(3))
    argv = [part.replace("{world}/new", str(tmp_path)).replace("{world}", str(world)) for part in quantize()]
    with pytest.raises(RuntimeError):
        main(argv)
