"""Checks of places to write to, made before the work whose results go there."""

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
