"""Opening what lies on disk, which somebody else may have put there: a model directory, a recipe, a run, a key file.

Only regular files are opened, nothing is waited for, and no more is read than the reader says. What is wrong is an
`OSError`, whose `strerror` says it, or a `ValueError` for content that is not of its kind.
"""

from __future__ import annotations

import errno
import io
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any

MAX_TOML_BYTES = 1 << 20
MAX_JSON_BYTES = 16 << 20
MAX_TOKENIZER_BYTES = 128 << 20  # those of Gemma, with 256,000 word pieces and their merges, have 17 to 34 MB
MAX_KEY_PARTS = 64  # of a.b.c in TOML: tomllib's memory grows with their square, 200 KB of them take 40 GB


def open_file(path: Path, max_bytes: int | None = None) -> io.BufferedReader:
    """A regular file, or a link to one, for reading; a larger one is refused.

    So is anything else: opening a FIFO would wait for a writer, and reading a device may never end.
    """
    file = open(path, "rb", opener=_open_without_waiting)  # noqa: SIM115 (the caller closes it)
    facts = os.fstat(file.fileno())
    if not stat.S_ISREG(facts.st_mode):
        file.close()
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    if max_bytes is not None and facts.st_size > max_bytes:
        file.close()
        raise _too_large(path, max_bytes)
    return file


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def regular(path: Path) -> Path:
    """The path itself, for libraries that open files by their name."""
    open_file(path).close()
    return path


def regular_folder(folder: Path, max_json_bytes: int = MAX_JSON_BYTES) -> Path:
    """The folder itself, for libraries that open any file in it by its name, and read JSON whole."""
    for entry in folder.iterdir():
        if not entry.is_dir():
            open_file(entry, max_json_bytes if entry.suffix == ".json" else None).close()
    return folder


def read_file(path: Path, max_bytes: int) -> bytes:
    """All of a file; a larger one is refused before it is read."""
    with open_file(path, max_bytes) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:  # files of /proc have no size and yet content
        raise _too_large(path, max_bytes)
    return content


def _too_large(path: Path, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes", str(path))


def read_text(path: Path, max_bytes: int) -> str:
    """UTF-8, with the mark in front that some editors write or without."""
    return read_file(path, max_bytes).decode("utf-8-sig")


def read_toml(path: Path) -> dict[str, Any]:
    """A TOML file of at most `MAX_TOML_BYTES`."""
    return parse_toml(read_text(path, MAX_TOML_BYTES))


def parse_toml(text: str) -> dict[str, Any]:
    """Raises `ValueError` also for what a parser does not bear: keys of too many parts, tables in tables in tables."""
    if _most_key_parts(text) > MAX_KEY_PARTS:
        raise ValueError(f"a key of more than {MAX_KEY_PARTS} parts")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _most_key_parts(text: str) -> int:
    """An upper bound: dots between what separates keys from anything else, strings and comments left out."""
    bare = re.sub(r"""#[^\n]*|"[^"\n]*"|'[^'\n]*'""", "", text)
    return 1 + max(part.count(".") for part in re.split(r"[=,\[\]{}\n]", bare))
