"""Places to write to: checked before the work whose results go there, and written whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from elit_serve.errors import InvalidInput


def check_folder(folder: Path, *, field: str = "out") -> None:
    """Makes `folder` if need be, and writes to it; `field` is what an error calls it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InvalidInput(field, str(folder), f"a folder that can be written: {error.strerror}") from None


def check_file(file: Path, *, field: str = "out") -> None:
    """Makes its folder if need be, and writes to that; what is no regular file, as a pipe, needs neither."""
    if file.is_dir():
        raise InvalidInput(field, str(file), "a file; this is a folder")
    if file.is_file() or not file.exists():
        check_folder(file.parent, field=field)


def write_whole(file: Path, content: str | bytes, *, field: str = "out") -> None:
    """All of the file or none of it, in a folder that is there. What is no regular file, as a pipe, is written to.

    Raises `InvalidInput` for `field`, and what was there before is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        if file.exists() and not file.is_file():
            file.write_bytes(data)
        else:
            _replace(file.resolve(), data)  # of a link, what it leads to
    except OSError as error:
        raise InvalidInput(field, str(file), f"it cannot be written: {error.strerror or error}") from None


def _replace(file: Path, data: bytes) -> None:
    staging = file.with_name(f".{file.name}.new")
    try:
        staging.write_bytes(data)
        staging.replace(file)
    finally:
        staging.unlink(missing_ok=True)
