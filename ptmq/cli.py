"""Command line: python -m ptmq <command>. It is all that the workflow's rules call."""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ptmq.common.errors import InputError, require

if TYPE_CHECKING:
    from ptmq.suite.profile import Run


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
        epilog="A network by its name, on a folder with train/<class>/*.jpg: python -m ptmq quantize "
        "--backbone timm/mobilenetv3_small_100 --images folder --out model. "
        "A first try without a download: python -m ptmq train --backbone digits_resnet --out /tmp/fp.safetensors, then "
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
    sub = command("quantize", quantize, "calibrate a network with one method: a run of a profile, or without one")
    add(sub, "profile", "backbone", "method", "variant", "width", "seed", "set", "spec", "weights", "data-dir", "out")
    add(sub, "images", "widths", "calibration-images", "keep-fp", "rule", "not-strict", "target", "weights-dir")
    add(sub, "offline", "device", "threads")
    sub.set_defaults(device=None, threads=None)  # else the profile's
    for name, text in EXECUTION.items():
        sub.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=text)
    sub = command("evaluate", evaluate, "top-1 of a calibrated model at all its widths, or of an FP network")
    add(sub, "model", "weights", "backbone", "images", "split", "fp-outputs", "data-dir", "device", "threads", "out")
    sub = command("mixed", mixed, "a width for every block of a multi-bit model: the frontier, and what a switch costs")
    add(sub, "model", "weights", "average-bits", "kib", "split", "fp-outputs", "data-dir", "device", "threads", "out")
    add(command("check", check, "check a profile and every method's settings"), "profile", "json")
    sub = command(
        "export", export, "write a calibrated model as ONNX that runs as integers: one width, or all in one file"
    )
    add(sub, "model", "width", "uint8", "as-stored", "data-dir", "out")
    sub = command("deploy", deploy, "hold an exported file against its model and the FP32 network: parity, size, speed")
    add(sub, "model", "file", "weights", "split", "data-dir", "threads", "repeats", "out")
    command("methods", methods, "list the methods and their settings")
    sub = command("bench", benchmark, "time learning iterations against the FP passes that they contain")
    add(sub, "case", "repeats", "threads", "device")
    sub.add_argument("--out", type=Path, help="where the record goes; else it is printed alone")
    return root


OPTIONS: dict[str, dict[str, Any]] = {
    "dataset": {"required": True, "help": "name of the dataset"},
    "backbone": {"help": "name of the backbone"},
    "images": {"help": "a dataset, or a folder with train/<class>/*.jpg and val/<class>/*.jpg; else the backbone's"},
    "method": {"help": "name of the method (see: python -m ptmq methods)"},
    "variant": {"default": "default", "help": "variant of the method, as the profile names it"},
    "width": {"help": "the width of a single-width method, such as W4A4"},
    "seed": {"type": int, "default": 0, "help": "seed of everything that is drawn"},
    "set": {"action": "append", "default": [], "metavar": "KEY=VALUE", "help": "override one setting; repeatable"},
    "profile": {"type": Path, "help": "profile file, such as workflow/config/digits.yaml"},
    "spec": {"help": "a whole run as JSON, instead of --profile, --backbone, ...; what the workflow passes"},
    "json": {"help": "a whole profile as JSON, instead of --profile; what the workflow passes"},
    "widths": {"help": "without --profile: what the model shall serve, such as W3A3..W8A8 or W4A4"},
    "calibration-images": {"type": int, "help": "how many training images calibrate; else 1,024, or all"},
    "keep-fp": {
        "action": "append",
        "default": [],
        "metavar": "LAYER",
        "help": "a layer that may stay in floating point, with wildcards; repeatable",
    },
    "rule": {
        "action": "append",
        "default": [],
        "metavar": "LAYER=WIDTH",
        "help": "a width that a layer keeps, such as head=W8A8, with wildcards; repeatable",
    },
    "not-strict": {"action": "store_true", "help": "let any layer stay in floating point that cannot be quantized"},
    "target": {"help": "onnx for a model that runs as integers once it is exported, or none; else the method's own"},
    "weights": {"type": Path, "help": "FP weights (safetensors), from the commands weights or train"},
    "model": {"type": Path, "help": "folder of a calibrated model"},
    "average-bits": {"type": float, "action": "append", "default": [], "help": "a budget of average bits; repeatable"},
    "kib": {"type": float, "action": "append", "default": [], "help": "a budget of the weights in KiB; repeatable"},
    "fp-outputs": {"type": Path, "help": "the FP network's outputs: written with --weights, read with --model"},
    "split": {"default": "test", "help": "train, heldout or test"},
    "data-dir": {"help": "data folder; else PTMQ_DATA_DIR, else ./data"},
    "weights-dir": {"help": "folder of downloaded checkpoints; else PTMQ_WEIGHTS_DIR, else ./data/weights"},
    "offline": {"action": "store_true", "help": "never download"},
    "device": {"default": "auto", "help": "cpu, cuda, or auto: cuda where there is one"},
    "threads": {"type": int, "default": 1, "help": "CPU threads"},
    "case": {"default": "resnet20-stage1", "help": "a block, such as resnet20-stage1; depth, switching or processes"},
    "repeats": {"type": int, "default": 30, "help": "timed repetitions"},
    "file": {"type": Path, "help": "ONNX file, from the command export"},
    "uint8": {"action": "store_true", "help": "images are bytes: the backbone's normalisation goes into the file"},
    "as-stored": {"action": "store_true", "help": "as --uint8 where the pixels of the model's dataset are bytes"},
    "out": {"type": Path, "required": True, "help": "where the result goes"},
}

EXECUTION = {
    "compile": "fake quantizers by torch.compile: faster after some 20 s; needs a C++ compiler",
    "autocast": "layers and products while learning in bfloat16: another result, faster on a GPU",
    "features_in_main_memory": "keep features in main memory, where they do not fit on the GPU",
}


# ---------------------------------------------------------------- what the commands share
def overrides(pairs: list[str], option: str = "--set") -> dict[str, Any]:
    """['iterations=100', 'mfm=none'] -> {'iterations': 100, 'mfm': 'none'}; values are read as YAML."""
    values = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"{option} needs {OPTIONS[option[2:]]['metavar']}. Got {pair!r}.")
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{option} {key}: {value!r} is not a value in YAML.") from None
    return values


def required(args: argparse.Namespace, *names: str) -> None:
    """Raise InputError unless the options are given."""
    missing = [f"--{name}" for name in names if getattr(args, name.replace("-", "_")) is None]
    if missing:
        raise InputError(f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.")


# ---------------------------------------------------------------- the commands
def data(args: argparse.Namespace) -> None:
    """Get a dataset; write a manifest with its hashes."""
    from ptmq.common.files import write_json
    from ptmq.data import datasets

    folder = datasets.data_folder(args.data_dir)
    write_json(args.out, {"dataset": args.dataset, "sha256": datasets.fetch(args.dataset, folder, args.offline)})


def weights(args: argparse.Namespace) -> None:
    """Get a public checkpoint; write it as safetensors under the network's own names."""
    from ptmq.models.checkpoints import convert

    required(args, "backbone")
    convert(args.backbone, args.weights_dir, args.offline, args.out)


def train(args: argparse.Namespace) -> None:
    """Train a network; write its weights."""
    from ptmq.common.device import open_device
    from ptmq.training.floating_point import train_backbone

    required(args, "backbone")
    device = open_device(args.device, args.threads)
    seconds = train_backbone(args.backbone, overrides(args.set), args.seed, args.data_dir, args.out, device)
    print(f"trained in {seconds:.0f} s")


def run_of(args: argparse.Namespace) -> "Run":
    """The run that `quantize` is asked for: --spec, a choice from --profile, or the network and images given."""
    from ptmq.data.datasets import dataset_named
    from ptmq.suite.calibration import run_by_names
    from ptmq.suite.profile import Run

    if args.widths and (args.spec or args.profile):
        raise InputError("--widths is for a run without a profile. Choose one of a profile's runs by --width.")
    dataset = dataset_named(args.images) if args.images else None
    if args.spec:
        run = Run.from_json(args.spec)
    elif args.profile:
        run = chosen_run(args)
    else:
        required(args, "backbone")
        run = run_by_names(args.backbone, args.method or "ptmq", dataset, args.widths, args.seed, args.data_dir)
    given = {
        "dataset": dataset,
        "calibration_images": args.calibration_images,
        "device": args.device,
        "threads": args.threads,
    }
    conversion = {
        "keep_fp": args.keep_fp,
        "rules": overrides(args.rule, "--rule"),
        "strict": False if args.not_strict else None,
        "target": args.target,
    }
    return replace(
        run,
        settings={**run.settings, **overrides(args.set)},
        execution={**run.execution, **{name: True for name in EXECUTION if getattr(args, name)}},
        conversion={**run.conversion, **{k: v for k, v in conversion.items() if v not in (None, [], {})}},
        **{name: value for name, value in given.items() if value is not None},
    )


def chosen_run(args: argparse.Namespace) -> "Run":
    """The one run of the profile that the options choose."""
    from ptmq.suite.profile import read_profile, runs_of

    required(args, "backbone", "method")
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
    return runs[0]


def quantize(args: argparse.Namespace) -> None:
    """Calibrate; write the model with everything its run record will need."""
    from ptmq.common.device import open_device
    from ptmq.models.checkpoints import convert
    from ptmq.suite.calibration import calibrate

    run = run_of(args)
    if args.weights is None:  # kept beside the model: evaluate wants them for the FP network
        args.weights = args.out / "fp.safetensors"
        convert(run.backbone, args.weights_dir, args.offline, args.weights)
    calibrate(run, args.weights, args.data_dir, args.out, open_device(run.device, run.threads))


def evaluate(args: argparse.Namespace) -> None:
    """Top-1 at every width; write the run record, and beside it which images were classified correctly."""
    from ptmq.common.device import open_device
    from ptmq.common.files import write_json
    from ptmq.data.datasets import dataset_named
    from ptmq.suite.evaluation import evaluate_fp, evaluate_model

    if (args.model is None) == (args.weights is None):
        raise InputError("give either --model (a calibrated model) or --weights and --backbone (an FP network).")
    device = open_device(args.device, args.threads)
    correct = args.out.with_suffix(".correct.safetensors")
    if args.model is None:
        required(args, "backbone")
        dataset = dataset_named(args.images) if args.images else None
        record = evaluate_fp(
            args.backbone, args.weights, args.split, args.fp_outputs, args.data_dir, device, dataset, correct
        )
    else:
        record = evaluate_model(args.model, args.split, args.fp_outputs, args.data_dir, device, correct)
    write_json(args.out, record)
    for line in record["results"]:
        mode = f"  {line['mode']}" if line.get("mode") else ""
        print(
            f"{line['width']}  {line['top1']:.2f} %  ({line['correct']} of {line['images']} {args.split} images){mode}"
        )


def mixed(args: argparse.Namespace) -> None:
    """Accuracy against average bits and size; write the frontier's record."""
    from ptmq.common.device import open_device
    from ptmq.common.files import write_json
    from ptmq.suite.frontier import frontier

    required(args, "model", "weights")
    device = open_device(args.device, args.threads)
    record = frontier(
        args.model, args.weights, args.split, args.fp_outputs, args.data_dir, device, args.average_bits, args.kib
    )
    write_json(args.out, record)
    for point in record["points"]:
        budget = f"budget {point['budget']}" if point["kind"] == "mixed" else "every block"
        print(f"{budget:16} {point['average_bits']:.2f} bits  {point['kib']:.0f} KiB  {point['top1']:.2f} %")
        if point["kind"] == "mixed" and (args.average_bits or args.kib):
            print("  " + ", ".join(f"{unit} {width}" for unit, width in point["assignment"].items()))


def export(args: argparse.Namespace) -> None:
    """Write a model as ONNX; say what stays in floating point."""
    from ptmq.suite.deploy.files import export_folder

    required(args, "model")
    print(export_folder(args.model, args.out, args.width, args.uint8, args.as_stored, args.data_dir))


def deploy(args: argparse.Namespace) -> None:
    """Measure an exported file; write its record."""
    from ptmq.common.files import write_json
    from ptmq.suite.deploy.measure import deploy as measured

    required(args, "model", "file", "weights")
    record = measured(args.model, args.file, args.weights, args.split, args.data_dir, args.threads, args.repeats)
    write_json(args.out, record)
    for line in record["results"]:
        print(
            f"{line['width']}  {line['top1']:.2f} %  {line['model']['equal']:.2f} % of the predictions are the model's"
        )


def check(args: argparse.Namespace) -> None:
    """Check a profile and the settings of all its runs; all mistakes are told at once."""
    from ptmq.data.datasets import get_dataset
    from ptmq.models.backbone import get_backbone
    from ptmq.suite.calibration import execution_of, method_of
    from ptmq.suite.profile import all_runs, read_profile, validate
    from ptmq.training.floating_point import training_of

    if args.json is None:
        required(args, "profile")
    profile = read_profile(args.profile) if args.json is None else validate(yaml.safe_load(args.json))
    classes = get_dataset(profile["dataset"]).classes
    mistakes: dict[str, None] = {}  # in order, each once
    for run in all_runs(profile):
        try:
            backbone = get_backbone(run.backbone).complete()
            if classes not in (None, backbone.dataset):
                raise InputError(
                    f"backbone {run.backbone!r} is for dataset {backbone.dataset!r}. Got dataset {run.dataset!r}."
                )
            training_of(run.backbone, profile["backbones"][run.backbone].get("training", {}))
        except InputError as error:
            mistakes[str(error)] = None
            continue
        try:
            method_of(run)
            execution_of(run)
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
    from ptmq.common.device import open_device
    from ptmq.common.files import write_json
    from ptmq.suite.bench.cases import lines, measure

    require(args.repeats >= 1, "--repeats", "at least 1", args.repeats)
    result = measure(args.case, args.repeats, open_device(args.device, args.threads))
    if args.out:
        write_json(args.out, result)
    print("\n".join(lines(result)))
