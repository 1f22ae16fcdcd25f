"""Run records: one JSON a run that explains itself; every table is built from these alone."""

import platform
import resource
import sys
from typing import Any

import torch

from ptmq.common.bits import BitWidth

FORMAT = 1


def peak_mb(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the GPU where one computes, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kilobytes / (2**20 if sys.platform == "darwin" else 2**10)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and the device: what a result may depend on besides its configuration."""
    import timm
    import torchvision

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
    }


def top1(correct: int, images: int) -> float:
    """Accuracy in percent, as records keep it."""
    return round(100 * correct / images, 4)


def result(width: BitWidth, correct: int, images: int, kl: float) -> dict[str, Any]:
    """Accuracy at one width, top1 in percent, and the mean KL divergence from the FP network's output, in nats."""
    return {
        "width": str(width),
        "w_bits": width.weight,
        "a_bits": width.activation,
        "top1": top1(correct, images),
        "kl": round(kl, 6),
        "correct": correct,
        "images": images,
    }
