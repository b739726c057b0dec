"""What makes sampling on a CPU fast beside torch itself."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20


def keep_freed_memory() -> None:
    """Lets glibc keep the memory of freed tensors for the next ones instead of returning it to the kernel.

    Every step allocates and frees the same few megabytes; without this, half of the elementwise time goes into page
    faults (a garden64 picture on 2 cores: 5.4 s without, 4.7 s with). Elsewhere than on Linux with glibc it does
    nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, 1 << 30)
