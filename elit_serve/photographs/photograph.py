"""One labelled picture of a data set: where it lies, and how it is read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from elit_serve.errors import DamagedPicture, DataSetGone
from elit_serve.files.opening import open_file
from elit_serve.photographs.rgb import to_rgb, upright_size

MAX_FILE_BYTES = 1 << 29  # 64 million pixels of 8 bytes
HEAD_BYTES = 1 << 16  # of a file, where its size mostly stands


@dataclass(frozen=True, slots=True)
class FileVersion:
    """By what a file is known again: another one in its place, or other content, changes one of these.

    inode: None where it does not count. Some network drives number a file anew when it was not used for a while.
    """

    size: int
    mtime_ns: int
    inode: int | None = None

    def is_of(self, stat: os.stat_result) -> bool:
        same = (self.size, self.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        return same and self.inode in (None, stat.st_ino)


@dataclass(frozen=True, kw_only=True, slots=True)
class Photograph:
    """Where one labelled picture lies: a file of its own, or a span of bytes in a tar.

    label: its class; of a captioned one nothing. name: its path below the class, with slashes. file: the file as it was
    when the set was opened. caption: what it shows, of a captioned one.
    """

    label: str
    name: str
    path: Path
    file: FileVersion
    offset: int
    size: int
    caption: str = ""

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.label}/{self.name}" if self.label else self.name

    def read(self, at_most: int | None = None) -> bytes:
        """Its bytes, or as many of the first ones. Raises `DataSetGone` if they are not to be had, or the file is not
        the one that was opened."""
        wanted = self.size if at_most is None else min(at_most, self.size)
        try:
            with open_file(self.path) as file:
                if not self.file.is_of(os.fstat(file.fileno())):
                    raise DataSetGone(f"{self.path} is not the file any more that it was when the data set was opened")
                file.seek(self.offset)
                data = file.read(wanted)
        except OSError as error:
            raise DataSetGone(f"{self.path} cannot be read: {error.strerror or error}") from None
        if len(data) != wanted:
            raise DataSetGone(f"{self.path} ends before {self.place} does")
        return data


def decode(photograph: Photograph) -> Image.Image:
    """The picture in RGB, as `to_rgb` makes it.

    Raises `DamagedPicture` when the bytes are not a whole picture, and `DataSetGone` when there are no bytes.
    """
    if photograph.size > MAX_FILE_BYTES:
        raise DamagedPicture(f"{photograph.place}: a file of more than {MAX_FILE_BYTES >> 20} MB")
    try:
        return to_rgb(photograph.read())
    except ValueError as error:
        raise DamagedPicture(f"{photograph.place}: {error}") from None


def size_of(photograph: Photograph) -> tuple[int, int] | None:
    """Width and height of the picture as `decode` gives it, from the head of its file; None if that is damaged.

    Raises `DataSetGone`.
    """
    for num_bytes in (HEAD_BYTES, MAX_FILE_BYTES):  # what a camera writes before the picture may be long
        if (found := upright_size(photograph.read(num_bytes))) is not None:
            return found
    return None
