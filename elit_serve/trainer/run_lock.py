"""A run's folder belongs to one process at a time, for as long as that lives."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elit_serve.errors import RunError

logger = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of a run's folder; raises `RunError` with its holder if another process does.

    The lock is POSIX's: unlike flock's it is not inherited by the processes that load pictures, so it goes with the
    process that took it, however that ends. The file stays, and means nothing by itself.
    """
    file = folder / "lock"
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise RunError(f"{folder} cannot be written: {error.strerror}") from None
    try:
        _lock(descriptor, file)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX leaves open which of the two it is
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        raise RunError(f"the run in {file.parent} is under way: {holder} is training it") from None
    except OSError as error:  # some network drives have no locks
        logger.warning("%s cannot be locked (%s): do not resume this run twice at once", file, error.strerror)
        return
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    except OSError as error:
        raise RunError(f"{file} cannot be written: {error.strerror}") from None
