"""What a server asks of the operating system for its process, before it starts a thread."""

from __future__ import annotations

import ctypes
import gc
import sys

MAX_DESCRIPTORS = 1 << 16
M_ARENA_MAX = -8  # glibc's malloc.h
MAX_ARENAS = 2


def raise_descriptor_limit() -> None:
    """As many connections as this process may have; shells and supervisors often start it with 1,024 or less."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def limit_arenas() -> None:
    """glibc gives threads heaps of their own, each of which keeps the most that its threads ever needed: under load the
    process then grows for as long as answers are written on threads that have not written any yet."""
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # musl has none, and needs none
        mallopt(M_ARENA_MAX, MAX_ARENAS)


def settle_heap() -> None:
    """For a process that has loaded what it needs. Python looks through all that is alive now and then, during which
    no thread runs: with torch and a model that takes 0.3 s, of which a promise of 0.2 s knows nothing. What is there
    now stays, and need not be looked at again.
    """
    gc.collect()
    gc.freeze()
