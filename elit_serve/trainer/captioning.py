"""Captions for photographs that have classes only: a tar of the photographs with texts in the grammar beside them."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from elit_serve.errors import DamagedPicture, DataError, InvalidInput
from elit_serve.photographs import Part, Photograph, decode, open_data_set
from elit_serve.photographs.grammar import caption, look_at


def captioned(source: Path, part: Part = "training") -> Iterator[tuple[Photograph, str | None]]:
    """All photographs of a data set with classes, each with its caption; None of a damaged one."""
    for photograph in open_data_set(source, part).photographs:
        try:
            yield photograph, caption(photograph.label, look_at(decode(photograph)))
        except DamagedPicture:
            yield photograph, None


def write_captioned(source: Path, out: Path, part: Part = "training") -> tuple[int, list[str]]:
    """A tar of the photographs of a data set as they are, each with a text beside it. -> how many, and those that are
    damaged, which are left out. Of photographs with one name the later ones get a number, for each to have its text.

    Raises `DataError`, and `InvalidInput` where `out` exists: it may be the data set itself.
    """
    if os.path.lexists(out):
        raise InvalidInput("out", str(out), "a file that does not exist yet")
    damaged, count = [], 0
    names = Counter[str]()
    staging = out.with_name(f".{out.name}")
    try:
        with tarfile.open(staging, "w") as tar:
            for photograph, said in captioned(source, part):
                if said is None:
                    damaged.append(photograph.place)
                    continue
                name, suffix = os.path.splitext(photograph.place)  # noqa: PTH122 (it is a place in a tar)
                names[name] += 1
                name = name if names[name] == 1 else f"{name}~{names[name]}"
                _add(tar, f"{name}{suffix}", photograph.read())
                _add(tar, f"{name}.txt", said.encode())
                count += 1
        staging.replace(out)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):  # after all went well it is gone
            staging.unlink()
    return count, damaged


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
