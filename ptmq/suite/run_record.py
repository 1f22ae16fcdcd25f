"""Run records: one JSON a run that explains itself; every table is built from these alone."""

import hashlib
import inspect
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ptmq.common.bits import BitWidth

FORMAT = 1
CODE = ("ptmq", "baselines", "workflow", "Snakefile", "pyproject.toml")
ROOT = Path(__file__).parent.parent.parent


def fingerprint(content: Any) -> str:
    """A short hash of anything JSON can hold; equal for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def code_hash(method: type = object) -> str:
    """A short hash of this package's source and of the files that define the method, if any, and its bases."""
    files = {*(ROOT / "ptmq").rglob("*.py")}
    files |= {
        Path(inspect.getfile(cls))
        for cls in method.__mro__
        if cls.__module__ not in sys.stdlib_module_names | {"builtins"}
    }
    return fingerprint([file.read_text() for file in sorted(files)])


def commit() -> str:
    """The git commit of the code, with '+' where the code differs from it; 'unknown' outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--", *CODE], capture_output=True, text=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head[:12] + ("+" if changes else "")


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
