"""Where a job computes and what its tensors take: the device, its threads, memory, how many images pass at a time."""

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from mmap import mmap

import torch
from torch import Tensor

from ptmq.common.errors import InputError, require

BATCH_VALUES = 2**22  # 16 MiB; what is computed from them may be many times as large
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
KEPT = 2**31 - 1  # bytes at the top of the heap, as many as mallopt takes
GROWTH = 2**28  # bytes by which the heap grows


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


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed; False where it is not glibc.

    By default glibc gives every large block back to the system at once and gets it anew, zeroed page by page, for the
    next feature map: learning on large feature maps then spends most of its time in the kernel. To be called when the
    data are read, or what reading them took for a moment is kept as well.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, KEPT), mallopt(M_TOP_PAD, GROWTH)])


def give_back_freed_memory() -> None:
    """Have the C library give back what it keeps of freed memory, once; nothing where it is not glibc.

    Between phases that need blocks of other sizes, such as units: the peak is then that of the largest, and not of all
    that was left between them.
    """
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _of_glibc(function: str) -> Callable[..., int] | None:
    """A function of the C library; None where that is not glibc."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), function)
    except (OSError, AttributeError):  # musl
        return None


def images_at_a_time(shape: Sequence[int], most: int) -> int:
    """How many images of a shape pass together in inference: `most`, or as few as have BATCH_VALUES values."""
    return max(1, min(most, BATCH_VALUES // max(1, math.prod(shape))))


def memory_format(x: Tensor) -> torch.memory_format:
    """Channels last for feature maps: convolutions run faster on it."""
    return torch.channels_last if x.dim() == 4 else torch.contiguous_format


def joined(batches: Iterable[Tensor], count: int) -> Tensor:
    """Batches, `count` rows in all, as one tensor in its memory format; no two copies of all lie beside each other."""
    whole, start = torch.empty(0), 0
    for batch in batches:
        if not start:
            whole = _room(count, batch)
        whole[start : start + len(batch)] = batch
        start += len(batch)
    return whole


def _room(count: int, like: Tensor) -> Tensor:
    """Room for `count` rows of a feature, in its memory format: in main memory apart from what C keeps of freed memory.

    Features live long and are large. Between what every iteration allocates they would leave holes.
    """
    shape = [count, *like.shape[1:]]
    if like.device.type != "cpu" or not math.prod(shape):
        return like.new_empty(shape).to(memory_format=memory_format(like))
    memory = mmap(-1, math.prod(shape) * like.element_size())
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(
        shape, torch.empty(shape, device="meta").to(memory_format=memory_format(like)).stride()
    )
