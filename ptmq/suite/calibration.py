"""The calibration stage: from FP weights and a run's settings to a calibrated model on disk."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from ptmq.api import fit, save_model, suited
from ptmq.common import provenance
from ptmq.common.bits import BitGroups, BitWidth, read_widths
from ptmq.common.device import keep_freed_memory
from ptmq.common.errors import InputError
from ptmq.common.files import sha256
from ptmq.common.settings import from_dict
from ptmq.data.datasets import open_images
from ptmq.data.images import Images, PreparedImages
from ptmq.methods.interface import Method, Task, create, discover, method_file
from ptmq.methods.label_training import TrainedMethod
from ptmq.models.backbone import get_backbone
from ptmq.models.checkpoints import load_network
from ptmq.reconstruction.engine import ResumeFile
from ptmq.reconstruction.settings import Execution
from ptmq.suite import run_record
from ptmq.suite.profile import MULTI, Run, widths_of


def method_of(run: Run, network: nn.Module | None = None) -> Method:
    """The run's method with its settings, widths and groups checked; what it leaves open suits the network."""
    groups = BitGroups(*run.groups.values()) if run.groups else None
    settings = (suited(network, run.method) if network else {}) | run.settings
    method = create(run.method, settings, [BitWidth.parse(width) for width in run.widths], groups)
    if method.per_width and run.label == MULTI:
        raise InputError(f"{run.method} calibrates one width at a time. Set per_width: true for it in the profile.")
    return method


def run_by_names(
    backbone: str, method: str, dataset: str | None, widths: str | None, seed: int, data_dir: str | None
) -> Run:
    """A run without a profile: a network on a dataset, with the groups, settings and images that suit it.

    dataset: None for the backbone's own · widths: such as 'W3A3..W8A8', else those of the backbone's groups.
    """
    entry = get_backbone(backbone)
    groups = {name: list(group) for name, group in entry.groups.items()}
    if widths:
        chosen = read_widths(widths)
        parts = BitGroups.split(chosen).groups if len(chosen) > 1 else ()
        groups = {f"group{number}": list(map(str, part)) for number, part in enumerate(parts, 1)}
    dataset = dataset or entry.dataset
    images, _ = open_images(backbone, "train", data_dir, dataset)
    served = tuple(map(str, read_widths(widths))) if widths else widths_of(groups)
    known = discover().get(method)  # whoever creates it says that it is unknown
    alone = known is not None and known.per_width and len(served) == 1
    return Run(
        profile="none",
        dataset=dataset,
        backbone=backbone,
        method=method,
        variant="default",
        widths=served,
        groups=groups or None,
        seed=seed,
        settings=dict(entry.settings.get(method, {})),
        calibration_images=min(1024, len(images)),
        device="auto",
        label=served[0] if alone else MULTI,
    )


def execution_of(run: Run) -> Execution:
    """How the run is executed. Raises InputError for an unknown option."""
    return from_dict(Execution, run.execution, "execution")


def calibration_index(count: int, run: Run) -> torch.Tensor:
    """Which training images calibrate: drawn without replacement by the run's seed, (calibration_images,)."""
    if run.calibration_images > count:
        raise InputError(
            f"calibration_images must be at most the {count} training images of {run.dataset!r}. "
            f"Got {run.calibration_images}."
        )
    return torch.randperm(count, generator=torch.Generator().manual_seed(run.seed))[: run.calibration_images]


def code_sha256(method: Method, backbone: str) -> str:
    """A hash of the code that decides a calibration: this stage, the method's own file, the network's."""
    return provenance.code_sha256(
        "ptmq.suite.calibration", method_file(type(method)), get_backbone(backbone).build.split(":")[0]
    )


def calibrate(run: Run, weights: Path, data_dir: str | None, out: Path, device: torch.device) -> None:
    """Calibrate and write model.safetensors and model.json, with all that the run record needs, to `out`.

    An interrupted calibration continues from the last finished unit.
    """
    load_before, started = run_record.load("load_start"), time.process_time()
    execution = execution_of(run)
    backbone = get_backbone(run.backbone).complete()
    network = load_network(run.backbone, weights)
    method = method_of(run, network)
    images, hashes = open_images(run.backbone, "train", data_dir, run.dataset)
    keep_freed_memory()
    index = calibration_index(len(images), run)
    weights_sha256, code = sha256(weights), code_sha256(method, run.backbone)
    # The name holds all that the state depends on, so that another run's, or older code's, is never taken up.
    identity = provenance.fingerprint([run.to_json(), weights_sha256, hashes, code, device.type])
    resume = ResumeFile(out / f"unfinished-{identity}.safetensors")
    title = f"{run.backbone} {run.method} {run.label}"
    read: tuple[Images, Tensor] = images, index
    if not isinstance(method, TrainedMethod):  # others would only take memory
        read = PreparedImages(images.batch(index)[0]), torch.arange(len(index))
    del images
    task = Task(network, backbone.blocks, *read, run.seed, device, resume, title, execution, run.conversion)
    model, details = fit(method, task, run.backbone, run.backbone)
    info = {
        "run": asdict(run),
        "protocol": {
            **asdict(method.settings),
            "calibration_index_sha256": provenance.fingerprint(index.tolist()),
            "mean": backbone.mean,
            "std": backbone.std,
            **details.pop("protocol", {}),
        },
        "cost": {
            "seconds": resume.seconds(),
            "cpu_seconds": round(time.process_time() - started, 2),  # of this process: the last, after an interruption
            "peak_mb": run_record.peak_mb(device),
            "images": len(index),
            **load_before,
            **run_record.load("load_end"),
            **details.pop("cost", {}),
        },
        "bits_per_weight": round(model.bits_per_weight(), 4),
        "sha256": {"weights": weights_sha256, "data": hashes},
        "environment": run_record.environment(device),
        "code_sha256": code,
        "commit": provenance.commit(),
        **details,
    }
    save_model(out, model.cpu(), run.backbone, method, info)
    for unfinished in out.glob("unfinished-*"):  # this run's, and those of settings given up
        unfinished.unlink(missing_ok=True)  # where another process of the same run was at it, too
