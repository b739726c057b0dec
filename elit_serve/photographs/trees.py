"""Folders and tars as trees of files, so that both are walked by the same rules.

Links are followed in both: a link that leads nowhere, or in a tar out of it, is a reason to leave it out, and so is
whatever is neither a file nor a folder.
"""

from __future__ import annotations

import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from elit_serve.errors import DataError
from elit_serve.files.opening import open_file
from elit_serve.photographs.photograph import FileVersion

Parts = tuple[str, ...]  # a path, name by name
K = TypeVar("K")

MAX_LINKS = 40  # on the way to one file, as Linux has it

LEADS_NOWHERE = "links that lead nowhere"
SPECIAL = "things that are neither files nor folders"


@dataclass(frozen=True, slots=True)
class Folder(Generic[K]):
    """key: by which its tree knows it. identity: the same for two ways to one folder."""

    key: K
    identity: object
    is_link: bool


@dataclass(frozen=True, slots=True)
class File:
    """Bytes `offset` to `offset + size` of the file at `path`."""

    path: Path
    version: FileVersion
    offset: int
    size: int


class Tree(Protocol[K]):
    """Where files are found by name, folder by folder."""

    def top(self) -> Folder[K]: ...

    def names(self, folder: K) -> list[str]:
        """What is in a folder, in any order."""

    def look(self, folder: K, name: str) -> Folder[K] | tuple[File, ...] | str:
        """What a name stands for; a string is the reason why that cannot be taken. Tars may use a name again."""


class DiskTree:
    """A folder on disk. Raises `DataError` when a part of it cannot be read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def top(self) -> Folder[Path]:
        return Folder(self._path, _identity(self._path.stat()), is_link=False)

    def names(self, folder: Path) -> list[str]:
        """In UTF-8, as in a tar, whatever the locale is."""
        try:
            return [name.decode("utf-8", "surrogateescape") for name in os.listdir(os.fsencode(folder))]  # noqa: PTH208
        except OSError as error:
            raise DataError(f"{folder} cannot be read: {error.strerror}") from None

    def look(self, folder: Path, name: str) -> Folder[Path] | tuple[File, ...] | str:
        path = folder / os.fsdecode(name.encode("utf-8", "surrogateescape"))
        try:
            found = path.stat()
        except OSError as error:
            if path.is_symlink():
                return LEADS_NOWHERE
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        if stat.S_ISDIR(found.st_mode):
            return Folder(path, _identity(found), is_link=path.is_symlink())
        if stat.S_ISREG(found.st_mode):
            return (File(path, FileVersion(found.st_size, found.st_mtime_ns), 0, found.st_size),)
        return SPECIAL


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


_COMPRESSED = {
    b"PK": ("a zip", "unzip"),
    b"\x1f\x8b": ("compressed with gzip", "tar -xzf"),
    b"BZh": ("compressed with bzip2", "tar -xjf"),
    b"\xfd7zXZ": ("compressed with xz", "tar -xJf"),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", "tar --zstd -xf"),
}


def _what_else(path: Path, error: Exception) -> str:
    """What a file is that is no tar, and what can be done about it. Pictures are read where they lie, one by one, which
    nothing that is compressed allows."""
    with path.open("rb") as file:
        head = file.read(8)
    for magic, (kind, unpack) in _COMPRESSED.items():
        if head.startswith(magic):
            command = f"unzip {path} -d photos" if kind == "a zip" else f"mkdir photos && {unpack} {path} -C photos"
            return f"is {kind}, not an uncompressed tar; unpack it ({command}) and give the folder"
    return f"is not an uncompressed tar: {error}"


class TarTree:
    """An uncompressed tar, read once from end to end.

    Several files may have one name there. Extracted, the last would be left; here all are found.
    """

    def __init__(self, path: Path) -> None:
        self._files: dict[Parts, tuple[File, ...]] = {}
        self._links: dict[Parts, str] = {}
        self._special: set[Parts] = set()
        self._children: dict[Parts, dict[str, None]] = {(): {}}
        try:
            with (
                open_file(path) as file,
                tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar,
            ):
                found = os.fstat(file.fileno())
                version = FileVersion(found.st_size, found.st_mtime_ns, found.st_ino)
                for member in tar:
                    self._add(member, path, version)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
        except (tarfile.TarError, ValueError, OverflowError) as error:  # damaged headers are not always a TarError
            what = f"is damaged or cut off: {error}" if self._children[()] else _what_else(path, error)
            raise DataError(f"{path} {what}") from None

    def _add(self, member: tarfile.TarInfo, path: Path, version: FileVersion) -> None:
        place = _parts(member.name)
        while ".." in place:
            place = place[place.index("..") + 1 :]  # as `tar` does, which extracts nothing outside its folder
        for depth, name in enumerate(place):
            self._children.setdefault(place[:depth], {})[name] = None
        if member.isdir():
            self._children.setdefault(place, {})
        elif member.issym():
            self._links[place] = member.linkname
        elif member.islnk():  # to a file that came before
            self._files[place] = (*self._files.get(place, ()), *self._files.get(_parts(member.linkname), ())[-1:])
        elif member.isreg() and not member.issparse():
            file = File(path, version, member.offset_data, member.size)
            self._files[place] = (*self._files.get(place, ()), file)
        else:
            self._special.add(place)

    def top(self) -> Folder[Parts]:
        return Folder((), (), is_link=False)

    def names(self, folder: Parts) -> list[str]:
        return list(self._children[folder])

    def look(self, folder: Parts, name: str) -> Folder[Parts] | tuple[File, ...] | str:
        asked = (*folder, name)
        place = self._followed(asked)
        if place is None:
            return LEADS_NOWHERE
        if place in self._children:
            return Folder(place, place, is_link=place != asked)
        return self._files.get(place) or (SPECIAL if place in self._special else LEADS_NOWHERE)

    def _followed(self, place: Parts) -> Parts | None:
        """Where a path leads when all of its links are followed; None out of the tar, or in circles."""
        if not self._links:
            return place
        done: Parts = ()
        todo = list(reversed(place))
        links = 0
        while todo:
            name = todo.pop()
            if name == "..":
                if not done:
                    return None
                done = done[:-1]
                continue
            done = (*done, name)
            target = self._links.get(done)
            if target is not None:
                links += 1
                if links > MAX_LINKS or target.startswith("/"):
                    return None
                done = done[:-1]
                todo += reversed(_parts(target))
        return done


def _parts(path: str) -> Parts:
    """The names of a path in a tar; what makes it absolute is dropped, as by `tar`."""
    return tuple(part for part in path.split("/") if part not in ("", "."))
