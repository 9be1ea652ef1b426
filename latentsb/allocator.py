"""The C library's allocator, told to keep what is freed: large tensors come and go at every layer."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's `mallopt`: free memory at the heap's end, and sizes, above which pages go back to the system at once."""
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process, where the C library is glibc; the choice holds for the whole process.

    By default every tensor above 32 MiB is mapped afresh and given back, and the kernel clears its pages each time:
    for convolutions on images that takes as long as the arithmetic. The process stays as large as its peak.

    Returns:
        Whether the C library has agreed.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, NEVER)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
