"""Pictures of jobs on disk, as FOLDER/pictures/JOB/INDEX.FORMAT. Names are made of ids of our own and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from elit_serve.errors import ElitError, InvalidInput, ResultsGone, StorageFull, StoreUnavailable, TakenElsewhere
from elit_serve.jobs.states import is_id

SPARE_BYTES = 16 << 20  # left free for what is being made and for the database, which grows before it shrinks
FULL = (errno.ENOSPC, errno.EDQUOT)


class Results:
    """Belongs to one server at a time. Raises `InvalidInput` if the folder cannot be written or has another one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._pictures = folder / "pictures"
        self._lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        try:
            self._pictures.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Timeout:
            raise TakenElsewhere("results", str(folder), "a folder of its own; another server uses this one") from None
        except OSError as error:
            raise InvalidInput("results", str(folder), f"a folder that can be written ({error.strerror})") from None

    def close(self) -> None:
        self._lock.release()

    def check_room(self) -> None:
        """Raises `StorageFull` if no more should be accepted."""
        try:
            free = shutil.disk_usage(self._pictures).free
        except OSError as error:
            raise _trouble(error) from error
        if free < SPARE_BYTES:
            raise StorageFull("the disk of the jobs' pictures is full")

    def write(self, job_id: str, files: Sequence[bytes], suffix: str) -> int:
        """Bytes written; they are on disk when it returns, all or none."""
        folder = self._folder(job_id)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for index, content in enumerate(files):
                with (folder / f"{index}.{suffix}").open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            self.remove(job_id)
            raise _trouble(error) from error
        return sum(map(len, files))

    def read(self, job_id: str, index: int, suffix: str) -> bytes:
        """Raises `ResultsGone`."""
        try:
            return (self._folder(job_id) / f"{index:d}.{suffix}").read_bytes()
        except FileNotFoundError:
            raise ResultsGone from None
        except OSError as error:
            raise _trouble(error) from error

    def remove(self, job_id: str) -> None:
        shutil.rmtree(self._folder(job_id), ignore_errors=True)

    def remove_all_but(self, job_ids: Collection[str]) -> None:
        """What a server has left that was killed."""
        for folder in self._pictures.iterdir():
            if is_id(folder.name) and folder.name not in job_ids:
                self.remove(folder.name)

    def _folder(self, job_id: str) -> Path:
        assert is_id(job_id), job_id
        return self._pictures / job_id


def _trouble(error: OSError) -> ElitError:
    if error.errno in FULL:
        return StorageFull("the disk of the jobs' pictures is full")
    return StoreUnavailable(f"the jobs' pictures cannot be kept or read ({error.strerror})")
