"""Where a job computes: the device, its threads, and the C library's memory allocator."""

import ctypes
import os
import sys
from contextlib import suppress

import torch

from ptmq.common.errors import InputError, require

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
KEPT = 2**31 - 1  # bytes at the top of the heap, as many as mallopt takes
GROWTH = 2**28  # bytes by which the heap grows


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed; False where it is not glibc.

    By default glibc gives every large block back to the system at once and gets it anew, zeroed page by page, for the
    next feature map: learning on large feature maps then spends most of its time in the kernel. To be called when the
    data are read, or what reading them took for a moment is kept as well.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, KEPT), mallopt(M_TOP_PAD, GROWTH)])


def give_back_freed_memory() -> None:
    """Have the C library give back what it keeps of freed memory, once; nothing where it is not glibc.

    Between phases that need blocks of other sizes, such as units: the peak is then that of the largest, and not of all
    that was left between them.
    """
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # musl
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def open_device(name: str, threads: int) -> torch.device:
    """The torch device `name` (cpu, cuda, or auto: cuda where there is one), made deterministic.

    Sets the number of CPU threads for the whole process. Raises InputError where CUDA is asked for
    and there is none.
    """
    require(threads >= 1, "--threads", "at least 1", threads)
    torch.set_num_threads(threads)
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
