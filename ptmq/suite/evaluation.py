"""The evaluation stage: top-1 at every width in one pass over the images, written as a run record."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ptmq.api import load_model
from ptmq.common import provenance
from ptmq.common.bits import FP, FULL_PRECISION
from ptmq.common.device import keep_freed_memory, memory_format
from ptmq.common.errors import InputError
from ptmq.common.files import load_tensors, save_tensors, sha256
from ptmq.data.datasets import open_images
from ptmq.data.images import Images
from ptmq.methods.interface import discover, method_file
from ptmq.models.backbone import get_backbone
from ptmq.models.checkpoints import load_network
from ptmq.network.model import Switchable
from ptmq.network.serialization import TENSORS, standing_alone
from ptmq.suite import run_record
from ptmq.suite.profile import FP32
from ptmq.training.adaptive_bn import recalibrate, recalibration_batches, recalibration_images

BATCH = 250  # images at most
BATCH_PIXELS = 2**20  # fewer where they are large: feature maps of a batch fit into less memory

# A line of a run record's results, and which images were classified correctly, (images,) bool.
Measured = tuple[dict[str, Any], Tensor]


def indices(images: Images) -> Sequence[Tensor]:
    """Which images are evaluated together, a batch each."""
    height, width = images.batch(torch.tensor([0]))[0].shape[-2:]
    return torch.arange(len(images)).split(max(1, min(BATCH, BATCH_PIXELS // (height * width))))


@torch.no_grad()
def log_probabilities(network: nn.Module, images: Images, device: torch.device) -> Tensor:
    """What the network gives for every image, (images, classes), on the CPU."""
    batches = (images.batch(index)[0].to(device) for index in indices(images))
    return torch.cat([network(x).log_softmax(1).cpu() for x in batches])


def correct_images(log_p: Tensor, images: Images) -> Tensor:
    """Which images are classified correctly, (images,) bool."""
    return log_p.argmax(1) == images.labels


@torch.no_grad()
def score(
    model: nn.Module, switches: Mapping[Any, Callable[[], None]], images: Images, fp: Tensor, device: torch.device
) -> dict[Any, tuple[Tensor, float]]:
    """Which images are classified correctly, (images,) bool, and the mean KL(FP || quantized) in nats, by switch.

    switches: what sets the model's widths, by any key · fp: the FP network's log-probabilities, (images, classes).
    Every batch is read once for all.
    """
    right = {key: torch.empty(len(images), dtype=torch.bool) for key in switches}
    divergence = dict.fromkeys(switches, 0.0)
    for index in indices(images):
        x, y = images.batch(index)
        x, y = x.to(device).contiguous(memory_format=memory_format(x)), y.to(device)
        reference = fp[index].to(device)
        for key, switch in switches.items():
            switch()
            log_p = model(x).log_softmax(1)
            right[key][index] = (log_p.argmax(1) == y).cpu()
            divergence[key] += float(F.kl_div(log_p, reference, reduction="sum", log_target=True))
    return {key: (right[key], divergence[key] / len(images)) for key in switches}


def score_recalibrated(
    model: Switchable, train: Images, images: Images, fp: Tensor, device: torch.device
) -> list[Measured]:
    """The results of a model whose BatchNorm is re-estimated at every switch, with what that took.

    The same training images for every width; a switch includes reading them.
    """
    chosen = recalibration_batches(len(train))
    # so that the first width is not charged a warm-up
    recalibrate(model, recalibration_images(train, chosen[:1], device))
    found = []
    for width in model.widths:
        start = time.perf_counter()
        model.set_bits(width.weight, width.activation)
        count = recalibrate(model, recalibration_images(train, chosen, device))
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ms = 1000 * (time.perf_counter() - start)
        ((right, kl),) = score(model, {width: lambda: None}, images, fp, device).values()
        switch = {"switch_images": count, "switch_ms": round(ms, 3)}
        found.append((run_record.result(width, right, kl) | switch, right))
    return found


def save_outputs(path: Path, fp: Tensor, backbone: str, split: str) -> None:
    """Keep an FP network's log-probabilities, so that they are computed once for all methods."""
    save_tensors(path, {"log_probabilities": fp}, {"backbone": backbone, "split": split})


def load_outputs(path: Path, backbone: str, split: str) -> Tensor:
    """What `save_outputs` kept. Raises InputError where it is of another network or split."""
    tensors, info = load_tensors(path)
    wanted = {"backbone": backbone, "split": split}
    if info != wanted:
        raise InputError(f"--fp-outputs must be of {wanted}. Got {str(path)!r} of {info}.")
    return tensors["log_probabilities"]


def outputs_of_fp(
    model: Switchable, fp_outputs: Path | None, backbone: str, split: str, images: Images, device: torch.device
) -> Tensor:
    """The FP network's log-probabilities: those of the file, or without one those of the model at its FP width."""
    if fp_outputs:
        return load_outputs(fp_outputs, backbone, split)
    model.set_bits(FP, FP)
    return of_the_classes(images, log_probabilities(model, images, device))


def of_the_classes(images: Images, fp: Tensor) -> Tensor:
    """What a network gives for the images, (count, classes), where it has an output for every class of theirs.

    Raises InputError where it has not: folders count their classes by themselves.
    """
    if images.classes not in (None, fp.shape[1]):
        raise InputError(
            f"the network tells {fp.shape[1]} classes apart, and the folder of images has {images.classes}. Accuracy "
            "needs a folder for every class, in the order of the network's outputs, or val.txt with lines 'path class'."
        )
    return fp


def evaluate_fp(
    backbone: str,
    weights: Path,
    split: str,
    fp_outputs: Path | None,
    data_dir: str | None,
    device: torch.device,
    dataset: str | None = None,
    correct: Path | None = None,
) -> dict[str, Any]:
    """The run record of a floating-point network on its own dataset or the one named.

    Its outputs go to the file `fp_outputs`, which images it classified correctly to the file `correct`, if any.
    """
    start = time.perf_counter()
    network = load_network(backbone, weights).to(device)
    dataset = dataset or get_backbone(backbone).dataset
    images, hashes = open_images(backbone, split, data_dir, dataset)
    keep_freed_memory()
    fp = of_the_classes(images, log_probabilities(network, images, device))
    if fp_outputs:
        save_outputs(fp_outputs, fp, backbone, split)
    right = correct_images(fp, images)
    line = run_record.result(FULL_PRECISION, right, kl=0.0)
    info = {
        "run": {
            "dataset": dataset,
            "backbone": backbone,
            "method": FP32,
            "variant": "default",
            "label": line["width"],
            "seed": 0,
        },
        "protocol": {},
        "cost": {"seconds": 0.0, "peak_mb": run_record.peak_mb(device)},
        "sha256": {
            "weights": sha256(weights),
            "data": hashes,
            **keep_correct(correct, [(line, right)], dataset, split, hashes),
        },
        "environment": run_record.environment(device),
        "code_sha256": provenance.code_sha256("ptmq.suite.evaluation", get_backbone(backbone).build.split(":")[0]),
        "commit": provenance.commit(),
        "units": [],
    }
    return _record(info, split, [line], line["top1"], start)


def evaluate_model(
    folder: Path,
    split: str,
    fp_outputs: Path | None,
    data_dir: str | None,
    device: torch.device,
    correct: Path | None = None,
) -> dict[str, Any]:
    """The run record of a calibrated model at all its widths.

    fp_outputs: the file that `evaluate_fp` wrote; without it, the model's own FP width is computed · correct: the file
    that is to say which images were classified correctly, if any.
    """
    start = time.perf_counter()
    model, info = load_model(folder)
    del info["model"]
    info["sha256"]["model"] = sha256(folder / TENSORS)
    backbone = info["run"]["backbone"]
    info["code_sha256"] = code_of_record(info["code_sha256"], info["run"]["method"])
    images, hashes = open_images(backbone, split, data_dir, info["run"]["dataset"])
    keep_freed_memory()
    model.to(device)
    if fp_outputs is None and info["cost"].get("labels"):
        raise InputError(
            f"{info['run']['method']} trained the network itself, so the outputs of the one that it started from are "
            "needed. Give --fp-outputs (from: evaluate --weights ... --fp-outputs ...)."
        )
    if fp_outputs is None and standing_alone(model):
        raise InputError(
            f"{info['run']['method']} keeps integer codes and no floating-point weights, so the outputs of the network "
            "that it was made of are needed. Give --fp-outputs (from: evaluate --weights ... --fp-outputs ...)."
        )
    fp = outputs_of_fp(model, fp_outputs, backbone, split, images, device)
    found: list[Measured] = []
    for mode in model.modes:
        model.set_mode(mode)
        if model.recalibrated:
            train, _ = open_images(backbone, "train", data_dir, info["run"]["dataset"])
            found += score_recalibrated(model, train, images, fp, device)
            continue
        switches = {width: partial(model.set_bits, width.weight, width.activation) for width in model.widths}
        for width, (right, kl) in score(model, switches, images, fp, device).items():
            found.append((run_record.result(width, right, kl) | ({"mode": mode} if mode else {}), right))
    info["sha256"] |= keep_correct(correct, found, info["run"]["dataset"], split, hashes)
    return _record(info, split, [line for line, _ in found], run_record.top1(correct_images(fp, images)), start)


def code_of_record(calibration: str, method: str) -> str:
    """One hash of the code behind a record: that of its calibration, this stage and the method's own file."""
    evaluation = provenance.code_sha256("ptmq.suite.evaluation", method_file(discover()[method]))
    return hashlib.sha256(f"{calibration} {evaluation}".encode()).hexdigest()


def keep_correct(
    path: Path | None, found: list[Measured], dataset: str, split: str, hashes: dict[str, str]
) -> dict[str, str]:
    """Write which images were classified correctly at every width, and on which images that was, to `path`, if any.

    hashes: of the dataset's files · Returns what the record's hashes gain: the file's SHA-256.
    """
    if path is None:
        return {}
    tensors = {run_record.key(line): run_record.packed(right) for line, right in found}
    images = {"images": len(found[0][1]), "dataset": dataset, "split": split, "data": provenance.fingerprint(hashes)}
    save_tensors(path, tensors, images)
    return {"correct": sha256(path)}


def _record(info: dict[str, Any], split: str, lines: list, fp_top1: float, start: float) -> dict[str, Any]:
    """Results first, then everything that explains them."""
    info["cost"]["evaluation_seconds"] = time.perf_counter() - start
    return {"format": run_record.FORMAT, "split": split, "fp_top1": fp_top1, "results": lines, **info}
