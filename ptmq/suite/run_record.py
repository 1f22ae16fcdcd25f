"""Run records: one JSON a run that explains itself; every table is built from these alone."""

import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptmq.common.bits import BitWidth

FORMAT = 1


def peak_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the GPU where one computes, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and the machine: what a result may depend on besides its configuration.

    The libraries of networks say theirs without being imported, which takes longer than many a run.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "timm": version("timm"),
        "numpy": np.__version__,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_model(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def cpu_model() -> str:
    """What the processor calls itself; the machine's architecture where it does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), "") or platform.processor() or platform.machine()


def load(name: str) -> dict[str, float]:
    """How many processes wanted to compute in the last minute, on average, under that name; nothing where unknown."""
    try:
        return {name: round(os.getloadavg()[0], 2)}
    except (AttributeError, OSError):  # a system that does not count them
        return {}


def top1(correct: Tensor) -> float:
    """Accuracy in percent, as records keep it; correct: which images were classified correctly, (images,) bool."""
    return round(100 * int(correct.sum()) / len(correct), 4)


def result(width: BitWidth, correct: Tensor, kl: float) -> dict[str, Any]:
    """A line of the results: top1 in percent, and the mean KL divergence from the FP network's output, in nats.

    correct: which images were classified correctly, (images,) bool.
    """
    return {
        "width": str(width),
        "w_bits": width.weight,
        "a_bits": width.activation,
        "top1": top1(correct),
        "kl": round(kl, 6),
        "correct": int(correct.sum()),
        "images": len(correct),
    }


def key(line: dict[str, Any]) -> str:
    """The name of a line of the results: its width, and behind a + the mode that was measured, if any."""
    return line["width"] + (f"+{line['mode']}" if line.get("mode") else "")


def packed(correct: Tensor) -> Tensor:
    """One bit an image, (images,) bool -> (images / 8, rounded up) uint8; the first image is the highest bit."""
    return torch.from_numpy(np.packbits(correct.numpy()))
