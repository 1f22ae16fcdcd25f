"""Command line: python -m ptmq <command>. It is all that the workflow's rules call."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml

from ptmq.common.errors import InputError, one_of, require


def main(argv: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence on stderr and exit status 2."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    root = argparse.ArgumentParser(
        prog="python -m ptmq",
        description="Post-training multi-bit quantization of vision networks: PTMQ and its baselines.",
        epilog="A first try: python -m ptmq train --backbone digits_resnet --out /tmp/fp.safetensors, then "
        "python -m ptmq quantize --profile workflow/config/digits.yaml --backbone digits_resnet --method ptmq "
        "--weights /tmp/fp.safetensors --out /tmp/model, then "
        "python -m ptmq evaluate --model /tmp/model --out /tmp/record.json.",
    )
    commands = root.add_subparsers(required=True, metavar="command")

    def command(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    def add(sub: argparse.ArgumentParser, *names: str) -> None:
        for name in names:
            sub.add_argument(f"--{name}", **OPTIONS[name])

    add(command("data", data, "get a dataset and check its hashes"), "dataset", "data-dir", "offline", "out")
    add(command("weights", weights, "get a public checkpoint, check it, convert it to safetensors"),
        "backbone", "weights-dir", "offline", "out")  # fmt: skip
    add(command("train", train, "train a floating-point network that has no public checkpoint"),
        "backbone", "data-dir", "seed", "set", "device", "threads", "out")  # fmt: skip
    sub = command("quantize", quantize, "calibrate a network with one method")
    add(sub, "profile", "backbone", "method", "variant", "width", "seed", "set", "spec", "weights", "data-dir", "out")
    sub = command("evaluate", evaluate, "top-1 of a calibrated model at all its widths, or of an FP network")
    add(sub, "model", "weights", "backbone", "images", "split", "fp-outputs", "data-dir", "device", "threads", "out")
    sub = command("mixed", mixed, "a width for every block of a multi-bit model: the frontier, and what a switch costs")
    add(sub, "model", "weights", "average-bits", "kib", "split", "fp-outputs", "data-dir", "device", "threads", "out")
    add(command("check", check, "check a profile and every method's settings"), "profile", "json")
    command("methods", methods, "list the methods and their settings")
    sub = command("bench", benchmark, "time learning steps against the FP passes that they contain")
    add(sub, "case", "repeats", "threads", "device")
    sub.add_argument("--out", type=Path, help="where the record goes; else it is printed alone")
    return root


OPTIONS: dict[str, dict[str, Any]] = {
    "dataset": {"required": True, "help": "name of the dataset"},
    "backbone": {"help": "name of the backbone"},
    "images": {"help": "with --weights: the dataset to evaluate on, where it is not the backbone's own"},
    "method": {"help": "name of the method (see: python -m ptmq methods)"},
    "variant": {"default": "default", "help": "variant of the method, as the profile names it"},
    "width": {"help": "the width of a single-width method, such as W4A4"},
    "seed": {"type": int, "default": 0, "help": "seed of everything that is drawn"},
    "set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "override one setting; repeatable"},
    "profile": {"type": Path, "help": "profile file, such as workflow/config/digits.yaml"},
    "spec": {"help": "a whole run as JSON, instead of --profile, --backbone, ...; what the workflow passes"},
    "json": {"help": "a whole profile as JSON, instead of --profile; what the workflow passes"},
    "weights": {"type": Path, "help": "FP weights (safetensors), from the commands weights or train"},
    "model": {"type": Path, "help": "folder of a calibrated model"},
    "average-bits": {
        "type": float,
        "action": "append",
        "default": [],
        "help": "a budget of average weight bits; repeatable",
    },
    "kib": {
        "type": float,
        "action": "append",
        "default": [],
        "help": "a budget of the packed weights' size in KiB; repeatable",
    },
    "fp-outputs": {"type": Path, "help": "the FP network's outputs: written with --weights, read with --model"},
    "split": {"default": "test", "help": "train, heldout or test"},
    "data-dir": {"help": "data folder; else PTMQ_DATA_DIR, else ./data"},
    "weights-dir": {"help": "folder of downloaded checkpoints; else PTMQ_WEIGHTS_DIR, else ./data/weights"},
    "offline": {"action": "store_true", "help": "never download"},
    "device": {"default": "auto", "help": "cpu, cuda, or auto: cuda where there is one"},
    "threads": {"type": int, "default": 1, "help": "CPU threads"},
    "case": {"default": "resnet20-stage1", "help": "a block, such as resnet20-stage1; depth, switching or processes"},
    "repeats": {"type": int, "default": 30, "help": "timed repetitions"},
    "out": {"type": Path, "required": True, "help": "where the result goes"},
}


# ---------------------------------------------------------------- what the commands share
def torch_device(name: str, threads: int):
    """Set threads and allocator; return the torch device. Raises InputError where CUDA is asked for in vain."""
    import torch

    from ptmq.common.allocator import keep_freed_memory

    require(threads >= 1, "--threads", "at least 1", threads)
    torch.set_num_threads(threads)
    keep_freed_memory()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise InputError(f"device must be cpu, cuda or auto. Got {name!r}.")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no CUDA GPU. Set device: cpu, or auto.")
    if name == "cuda":  # the same run gives the same result, in float32 proper
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.allow_tf32 = False
    return torch.device(name)


def overrides(pairs: list[str]) -> dict[str, Any]:
    """['steps=100', 'mfm=none'] -> {'steps': 100, 'mfm': 'none'}; values are read as YAML."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--set needs KEY=VALUE. Got {pair!r}.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {key}: {value!r} is not a value in YAML.") from None
    return values


def required(args: argparse.Namespace, *names: str) -> None:
    """Raise InputError unless the options are given."""
    missing = [f"--{name}" for name in names if getattr(args, name.replace("-", "_")) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")


def training_of(backbone: str, values: dict[str, Any]):
    """The training settings of a backbone with some values replaced."""
    from ptmq.common.settings import from_dict
    from ptmq.models.backbones import get_backbone

    standard = get_backbone(backbone).training
    if standard is None:
        if not values:
            return None
        raise InputError(
            f"backbone {backbone!r} has public weights and is not trained. Got training settings {values}."
        )
    return from_dict(type(standard), {**asdict(standard), **values}, f"training of {backbone}")


# ---------------------------------------------------------------- the commands
def data(args: argparse.Namespace) -> None:
    """Get a dataset; write a manifest with its hashes."""
    from ptmq.common.files import write_json
    from ptmq.data import datasets

    folder = datasets.data_folder(args.data_dir)
    write_json(args.out, {"dataset": args.dataset, "sha256": datasets.fetch(args.dataset, folder, args.offline)})


def weights(args: argparse.Namespace) -> None:
    """Get a public checkpoint; write it as safetensors under the network's own names."""
    from ptmq.common.files import save_tensors, sha256
    from ptmq.models.backbones import get_backbone
    from ptmq.models.checkpoints import fetch, load_state, read_checkpoint, weights_folder

    required(args, "backbone")
    backbone = get_backbone(args.backbone)
    checkpoint = backbone.checkpoint
    if checkpoint is None:
        raise InputError(f"backbone {args.backbone!r} has no public checkpoint. Train it: python -m ptmq train.")
    path = fetch(checkpoint, weights_folder(args.weights_dir), args.offline)
    state = read_checkpoint(path, checkpoint)
    load_state(backbone.network(), state, str(path))
    source = {"file": checkpoint.file, "sha256": sha256(path), "source": checkpoint.source, "url": checkpoint.url}
    save_tensors(args.out, state, {"backbone": args.backbone, **source})


def train(args: argparse.Namespace) -> None:
    """Train a network; write its weights."""
    import torch

    from ptmq.common.files import save_tensors
    from ptmq.common.progress import Bar
    from ptmq.models.backbones import get_backbone
    from ptmq.suite.calibration import open_images
    from ptmq.suite.run_record import code_hash, fingerprint
    from ptmq.training import trainer as training

    required(args, "backbone")
    device = torch_device(args.device, args.threads)
    backbone = get_backbone(args.backbone)
    settings = training_of(args.backbone, overrides(args.set))
    if settings is None:
        raise InputError(f"backbone {args.backbone!r} has public weights. Get them: python -m ptmq weights.")
    images, hashes = open_images(args.backbone, "train", args.data_dir)
    with torch.random.fork_rng():  # torch initialises layers from its global generator
        torch.manual_seed(args.seed)
        network = backbone.network()
    info = {"backbone": args.backbone, "seed": args.seed, "training": asdict(settings)}
    unfinished = args.out.with_suffix(f".unfinished-{fingerprint([info, hashes, code_hash(), device.type])}.pt")
    with Bar(f"{args.backbone} training", settings.epochs, "epoch") as bar:
        state = training.train(
            network, images, settings, args.seed, device,
            lambda epoch, loss: bar.advance(f"epoch {epoch}", 1, loss), checkpoint=unfinished,
        )  # fmt: skip
    # no time of day and no duration in the file: the same training gives the same bytes
    save_tensors(args.out, {key: value.cpu() for key, value in network.state_dict().items()}, info)
    for path in args.out.parent.glob(f"{args.out.stem}.unfinished-*"):  # this one, and those of settings given up
        path.unlink(missing_ok=True)
    print(f"{settings.epochs} epochs in {state.seconds:.0f} s")


def run_of(args: argparse.Namespace):
    """The run that `quantize` is asked for: --spec, or --profile and a choice from it."""
    from ptmq.suite.profile import Run, read_profile, runs_of

    if args.spec:
        run = Run.from_json(args.spec)
    else:
        required(args, "profile", "backbone", "method")
        profile = read_profile(args.profile)
        profile["seeds"] = [args.seed]
        for body in profile["backbones"].values():
            body.pop("seeds", None)
        known = runs_of(profile, args.backbone, args.method)
        runs = [run for run in known if run.variant == args.variant and args.width in (None, run.label)]
        if len(runs) != 1:
            choices = ", ".join(f"--variant {run.variant} --width {run.label}" for run in known) or "none"
            raise InputError(
                f"{len(runs)} runs of {args.method} on {args.backbone} in profile {str(args.profile)!r} match "
                f"--variant {args.variant}{f' --width {args.width}' if args.width else ''}. "
                f"Choose one of: {choices}."
            )
        run = runs[0]
    return replace(run, settings={**run.settings, **overrides(args.set)})


def quantize(args: argparse.Namespace) -> None:
    """Calibrate; write the model with everything its run record will need."""
    from ptmq.suite.calibration import calibrate

    required(args, "weights")
    run = run_of(args)
    calibrate(run, args.weights, args.data_dir, args.out, torch_device(run.device, run.threads))


def evaluate(args: argparse.Namespace) -> None:
    """Top-1 at every width; write the run record."""
    from ptmq.common.files import write_json
    from ptmq.suite.evaluation import evaluate_fp, evaluate_model

    if (args.model is None) == (args.weights is None):
        raise InputError("give either --model (a calibrated model) or --weights and --backbone (an FP network).")
    device = torch_device(args.device, args.threads)
    if args.model is None:
        required(args, "backbone")
        record = evaluate_fp(
            args.backbone, args.weights, args.split, args.fp_outputs, args.data_dir, device, args.images
        )
    else:
        record = evaluate_model(args.model, args.split, args.fp_outputs, args.data_dir, device)
    write_json(args.out, record)
    for line in record["results"]:
        mode = f"  {line['mode']}" if line.get("mode") else ""
        print(
            f"{line['width']}  {line['top1']:.2f} %  ({line['correct']} of {line['images']} {args.split} images){mode}"
        )


def mixed(args: argparse.Namespace) -> None:
    """Accuracy against average bits and size; write the frontier's record."""
    from ptmq.common.files import write_json
    from ptmq.suite.frontier import frontier

    required(args, "model", "weights")
    device = torch_device(args.device, args.threads)
    record = frontier(
        args.model, args.weights, args.split, args.fp_outputs, args.data_dir, device, args.average_bits, args.kib
    )
    write_json(args.out, record)
    for point in record["points"]:
        budget = f"budget {point['budget']}" if point["kind"] == "mixed" else "every block"
        print(f"{budget:16} {point['average_bits']:.2f} bits  {point['kib']:.0f} KiB  {point['top1']:.2f} %")
        if point["kind"] == "mixed" and (args.average_bits or args.kib):
            print("  " + ", ".join(f"{unit} {width}" for unit, width in point["assignment"].items()))


def check(args: argparse.Namespace) -> None:
    """Check a profile and the settings of all its runs; all mistakes are told at once."""
    from ptmq.data.datasets import DATASETS
    from ptmq.models.backbones import get_backbone
    from ptmq.suite.calibration import method_of
    from ptmq.suite.profile import all_runs, read_profile, validate

    if args.json is None:
        required(args, "profile")
    profile = read_profile(args.profile) if args.json is None else validate(yaml.safe_load(args.json))
    one_of("dataset", profile["dataset"], DATASETS)
    mistakes: dict[str, None] = {}  # in order, each once
    for run in all_runs(profile):
        try:
            backbone = get_backbone(run.backbone)
            if backbone.dataset != DATASETS[run.dataset].classes:
                raise InputError(
                    f"backbone {run.backbone!r} is for dataset {backbone.dataset!r}. Got dataset {run.dataset!r}."
                )
            training_of(run.backbone, profile["backbones"][run.backbone].get("training", {}))
        except InputError as error:
            mistakes[str(error)] = None
            continue
        try:
            method_of(run)
        except InputError as error:
            mistakes[f"{run.backbone}, {run.method}, {run.variant}: {error}"] = None
    if mistakes:
        raise InputError("\n".join(mistakes))
    print(f"{len(all_runs(profile))} runs, no mistakes")


def methods(args: argparse.Namespace) -> None:
    """List the methods."""
    from dataclasses import fields

    from ptmq.methods.interface import BROKEN, discover

    for name, method in sorted(discover().items()):
        print(f"{name:16} {(method.__doc__ or '').strip().splitlines()[0]}")
        settings = ", ".join(f"{field.name}={field.default}" for field in fields(method.Settings))
        print(f"{'':16} {settings}")
    for module, why in BROKEN.items():
        print(f"{module} could not be imported: {why}", file=sys.stderr)


def benchmark(args: argparse.Namespace) -> None:
    """Measure one case; write its record."""
    from ptmq.common.files import write_json
    from ptmq.suite.bench import lines, measure

    require(args.repeats >= 1, "--repeats", "at least 1", args.repeats)
    result = measure(args.case, args.repeats, torch_device(args.device, args.threads))
    if args.out:
        write_json(args.out, result)
    print("\n".join(lines(result)))
