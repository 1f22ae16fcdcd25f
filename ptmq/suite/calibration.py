"""The calibration stage: from FP weights and a run's settings to a calibrated model on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from ptmq.api import save_model
from ptmq.common import provenance
from ptmq.common.bits import BitGroups, BitWidth
from ptmq.common.errors import InputError
from ptmq.common.files import sha256
from ptmq.common.settings import from_dict
from ptmq.data.datasets import open_images
from ptmq.methods.interface import Method, Task, create, method_file
from ptmq.models.backbone import get_backbone
from ptmq.models.checkpoints import load_network
from ptmq.reconstruction.engine import ResumeFile
from ptmq.reconstruction.settings import Execution
from ptmq.suite import run_record
from ptmq.suite.profile import MULTI, Run


def method_of(run: Run) -> Method:
    """The run's method with its settings, widths and groups checked."""
    groups = BitGroups(*run.groups.values()) if run.groups else None
    method = create(run.method, run.settings, [BitWidth.parse(width) for width in run.widths], groups)
    if method.per_width and run.label == MULTI:
        raise InputError(f"{run.method} calibrates one width at a time. Set per_width: true for it in the profile.")
    return method


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
    load_before = run_record.load("load_start")
    method = method_of(run)
    execution = execution_of(run)
    backbone = get_backbone(run.backbone)
    network = load_network(run.backbone, weights)
    images, hashes = open_images(run.backbone, "train", data_dir, run.dataset)
    index = calibration_index(len(images), run)
    weights_sha256, code = sha256(weights), code_sha256(method, run.backbone)
    # The name holds all that the state depends on, so that another run's, or older code's, is never taken up.
    identity = provenance.fingerprint([run.to_json(), weights_sha256, hashes, code, device.type])
    resume = ResumeFile(out / f"unfinished-{identity}.safetensors")
    title = f"{run.backbone} {run.method} {run.label}"
    task = Task(network, backbone.blocks, images, index, run.seed, device, resume, title, execution)
    with told(method, run, device):
        model, details = method.fit(task)
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
            "peak_mb": run_record.peak_mb(device),
            "images": len(index),
            **load_before,
            **run_record.load("load_end"),
            **details.pop("cost", {}),
        },
        "sha256": {"weights": weights_sha256, "data": hashes},
        "environment": run_record.environment(device),
        "code_sha256": code,
        "commit": provenance.commit(),
        **details,
    }
    save_model(out, model.cpu(), run.backbone, method, info)
    for unfinished in out.glob("unfinished-*"):  # this run's, and those of settings given up
        unfinished.unlink(missing_ok=True)  # where another process of the same run was at it, too


@contextmanager
def told(method: Method, run: Run, device: torch.device) -> Iterator[None]:
    """What a calibration can run out of, or lack, told in a sentence."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            reason = str(error).strip().splitlines()[0]
            raise InputError(
                f"{run.method}: compile: true, but torch.compile fails: {reason}. It needs a C++ compiler and Python's "
                "headers, on a GPU Triton. Set compile: false."
            ) from error
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        batch = getattr(method.settings, "batch_size", "")
        raise InputError(
            f"{device.type} is out of memory while {run.method} calibrates {run.backbone}. Lower batch_size ({batch}) "
            f"or calibration_images ({run.calibration_images}), or on a GPU set features_in_main_memory: true."
        ) from error
