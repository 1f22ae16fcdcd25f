"""The C library's memory allocator, told to keep what is freed.

By default glibc gives every large block back to the system at once and gets it anew, zeroed page by page, for the next
feature map: steps on large feature maps then spend most of their time in the kernel.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # malloc.h
KEPT = 2**31 - 1  # bytes at the top of the heap, as many as mallopt takes
GROWTH = 2**28  # bytes by which the heap grows


def keep_freed_memory() -> bool:
    """Take all blocks from the heap and do not shrink it; False where the C library is not glibc."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    return all([mallopt(M_MMAP_MAX, 0), mallopt(M_TRIM_THRESHOLD, KEPT), mallopt(M_TOP_PAD, GROWTH)])
