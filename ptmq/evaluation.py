"""The evaluation stage: top-1 at every width in one pass over the images, written as a run record."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ptmq import record
from ptmq.backbones import get_backbone
from ptmq.bits import FULL_PRECISION, BitWidth
from ptmq.calibration import open_images
from ptmq.config import FP32
from ptmq.datasets import Images
from ptmq.errors import require
from ptmq.features import memory_format
from ptmq.files import read_json, sha256
from ptmq.multibit import MultiBitModel
from ptmq.saved import TENSORS, load_model
from ptmq.weights import load_network

BATCH = 250


@torch.no_grad()
def count_correct(network: nn.Module, images: Images, device: torch.device) -> int:
    """How many images the network classifies correctly."""
    right = 0
    for index in torch.arange(len(images)).split(BATCH):
        x, y = images.batch(index)
        right += int((network(x.to(device)).argmax(1).cpu() == y).sum())
    return right


@torch.no_grad()
def score(
    model: MultiBitModel, images: Images, widths: Sequence[BitWidth], device: torch.device
) -> dict[BitWidth, tuple[int, float]]:
    """For each width and for FP: how many images are classified correctly, and the mean KL(FP || width) in nats.

    Every batch is read once for all widths.
    """
    right = dict.fromkeys((FULL_PRECISION, *widths), 0)
    divergence = dict.fromkeys(right, 0.0)
    for index in torch.arange(len(images)).split(BATCH):
        x, y = images.batch(index)
        x, y = x.to(device).contiguous(memory_format=memory_format(x)), y.to(device)
        for width in right:
            model.set_bits(width.weight, width.activation)
            log_p = model(x).log_softmax(1)
            if width == FULL_PRECISION:  # comes first
                fp = log_p
            right[width] += int((log_p.argmax(1) == y).sum())
            divergence[width] += float(F.kl_div(log_p, fp, reduction="sum", log_target=True))
    return {width: (right[width], divergence[width] / len(images)) for width in right}


def evaluate_fp(backbone: str, weights: Path, split: str, data_dir: str | None, device: torch.device) -> dict[str, Any]:
    """The run record of a floating-point network."""
    start = time.perf_counter()
    network = load_network(backbone, weights).to(device)
    images, hashes = open_images(backbone, split, data_dir)
    line = record.result(FULL_PRECISION, count_correct(network, images, device), len(images), kl=0.0)
    info = {
        "run": {
            "dataset": get_backbone(backbone).dataset,
            "backbone": backbone,
            "method": FP32,
            "variant": "default",
            "label": line["width"],
            "seed": 0,
        },
        "protocol": {},
        "cost": {"seconds": 0.0, "peak_mb": record.peak_mb(device)},
        "sha256": {"weights": sha256(weights), "data": hashes},
        "environment": record.environment(device),
        "commit": record.commit(),
        "units": [],
    }
    return _record(info, split, [line], line["top1"], start)


def evaluate_model(
    folder: Path, split: str, fp_record: Path | None, data_dir: str | None, device: torch.device
) -> dict[str, Any]:
    """The run record of a calibrated model at all its widths.

    fp_record: the record of its FP network; without it, the model's own FP width counts.
    """
    start = time.perf_counter()
    model, info = load_model(folder)
    del info["model"]
    info["sha256"]["model"] = sha256(folder / TENSORS)
    images, _ = open_images(info["run"]["backbone"], split, data_dir)
    scores = score(model.to(device), images, model.widths, device)
    lines = {width: record.result(width, right, len(images), kl) for width, (right, kl) in scores.items()}
    fp_top1 = lines.pop(FULL_PRECISION)["top1"]
    if fp_record:
        reference = read_json(fp_record)
        require("fp_top1" in reference, "--fp-record", "a run record", str(fp_record))
        fp_top1 = reference["fp_top1"]
    return _record(info, split, list(lines.values()), fp_top1, start)


def _record(info: dict[str, Any], split: str, lines: list, fp_top1: float, start: float) -> dict[str, Any]:
    """Results first, then everything that explains them."""
    info["cost"]["evaluation_seconds"] = time.perf_counter() - start
    return {"format": record.FORMAT, "split": split, "fp_top1": fp_top1, "results": lines, **info}
