"""Which captioned photographs a folder or a tar holds: a text `name.txt` beside `name.jpg`, or lines of a list.

The list is a `metadata.jsonl` in any folder, whose lines are objects with a `file_name`, relative to that folder, and a
`text`. A text beside a photograph goes before a line. Folders mean nothing, but for `train/` beside `val/` or `test/`,
of which one is taken. Photographs without a caption that can be read are left out, and named.
"""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from itertools import takewhile
from pathlib import Path

from elit_serve.errors import DataError
from elit_serve.photographs.data_set import PARTS, DataSet, Part, files_of, is_picture, is_split, printable
from elit_serve.photographs.photograph import Photograph
from elit_serve.photographs.trees import File, Parts
from elit_serve.plans.bounds import MAX_PROMPT

LIST = "metadata.jsonl"
MAX_LIST_BYTES = 1 << 30
MAX_CAPTION_BYTES = 4 * MAX_PROMPT  # in UTF-8, and as much again for what is stripped
_SHOWN = 5


def open_captioned_set(source: Path, part: Part = "training") -> DataSet:
    """The captioned photographs of a folder or an uncompressed tar; of one that is split at its top, those of a part.

    Raises `DataError` when it cannot be read, when a list has a line that says nothing, or when no photograph has a
    caption.
    """
    left_out: Counter[str] = Counter()
    files = files_of(source, left_out)
    root = _root({place[:-1] for place, _ in files if is_picture(place)}, source, part)
    captions = _Captions(source, [(place, file) for place, file in files if place[: len(root)] == root])
    found, without = [], defaultdict[str, list[str]](list)
    for place, file in files:
        if not is_picture(place):
            continue
        if place[: len(root)] != root:
            left_out[f"pictures of {printable(place[len(root) - 1])}/"] += 1
            continue
        name = printable(unicodedata.normalize("NFC", "/".join(place[len(root) :])))
        try:
            found.append((name, place, file, captions.of(place)))
        except _NoCaption as error:
            without[str(error)].append(name)
    for reason, names in without.items():
        left_out[f"pictures {reason} ({_shown(names)})"] = len(names)
    if not found:
        raise DataError(
            f"{source} holds no photograph with a caption: name.txt beside name.jpg, or a line of {LIST}"
            + "".join(f"; pictures {reason}: {_shown(names)}" for reason, names in without.items())
        )
    return DataSet(
        source=source,
        photographs=tuple(_photograph(name, file, caption) for name, _, file, caption in sorted(found, key=_order)),
        left_out=left_out,
    )


class _NoCaption(Exception):
    """Why a photograph has none."""


class _Captions:
    """The captions of a data set, by where their photographs are."""

    def __init__(self, source: Path, files: list[tuple[Parts, File]]) -> None:
        self._source = source
        self._texts = defaultdict[Parts, list[File]](list)  # a tar may use a name again
        for place, file in files:
            if place[-1].lower().endswith(".txt"):
                self._texts[_stem(place)].append(file)
        self._lines: dict[Parts, str] = {}
        for place, file in files:
            if place[-1] == LIST:
                self._lines |= dict(self._read_list(place, file))

    def of(self, place: Parts) -> str:
        """Raises `_NoCaption`."""
        texts = self._texts.get(_stem(place), [])
        if len(texts) > 1:
            raise _NoCaption("with several captions")
        if texts:
            if texts[0].size > MAX_CAPTION_BYTES:
                raise _NoCaption(f"whose caption has more than {MAX_PROMPT} characters")
            return _checked(_bytes(texts[0]))
        if place not in self._lines:
            raise _NoCaption("without a caption")
        return _checked(self._lines[place].encode("utf-8", "surrogatepass"))

    def _read_list(self, place: Parts, file: File) -> Iterator[tuple[Parts, str]]:
        name = "/".join(place)
        if file.size > MAX_LIST_BYTES:
            raise DataError(f"{self._source}: {name} is larger than {MAX_LIST_BYTES} bytes")
        for number, line in enumerate(_bytes(file).splitlines(), start=1):
            if not line.strip():
                continue
            said = json_object(line)
            file_name, text = said.get("file_name"), said.get("text")
            if not isinstance(file_name, str) or not isinstance(text, str):
                raise DataError(f"{self._source}: {name}: line {number} is no JSON object with a file_name and a text")
            yield (*place[:-1], *(each for each in file_name.split("/") if each not in ("", "."))), text


def json_object(line: bytes) -> Mapping[str, object]:
    """What a line of a list says; nothing where it is no JSON object."""
    try:
        said = json.loads(line)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is one too
        return {}
    return said if isinstance(said, dict) else {}


def _checked(content: bytes) -> str:
    """A caption as models are told it."""
    try:
        text = one_line(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise _NoCaption("whose caption is no UTF-8") from None
    if not text:
        raise _NoCaption("whose caption is empty")
    if len(text) > MAX_PROMPT:
        raise _NoCaption(f"whose caption has more than {MAX_PROMPT} characters")
    return text


def one_line(text: str) -> str:
    """As models are told it, in training and in measuring: without spaces around it, and each between words once."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _bytes(file: File) -> bytes:
    return _photograph(file.path.name, file, "").read()


def _photograph(name: str, file: File, caption: str) -> Photograph:
    return Photograph(
        label="",
        name=name,
        caption=caption,
        path=file.path,
        file=file.version,
        offset=file.offset,
        size=file.size,
    )


def _stem(place: Parts) -> Parts:
    """Where it is, without how its name ends."""
    return (*place[:-1], os.path.splitext(place[-1])[0])  # noqa: PTH122 (a path object for each of a million takes long)


def _root(folders: set[Parts], source: Path, part: Part) -> Parts:
    """The folder of the part, in a set that is split at its top; otherwise what holds all of them."""
    top = _around(folders)
    names = sorted({folder[len(top)] for folder in folders if len(folder) > len(top)})
    if top in folders or not is_split(names):
        return top
    for wanted in PARTS[part]:
        for name in names:
            if name.casefold() == wanted:
                return (*top, name)
    shown = ", ".join(f"{name}/" for name in names)
    raise DataError(f"{source} is split into {shown}, and none of them is {PARTS[part][0]}/")


def _around(folders: set[Parts]) -> Parts:
    """The innermost folder that holds all of these."""
    if not folders:
        return ()
    alike = takewhile(lambda names: names[0] == names[1], zip(min(folders), max(folders), strict=False))
    return tuple(name for name, _ in alike)


def _order(found: tuple[str, Parts, File, str]) -> tuple[str, Parts, int]:
    name, place, file, _ = found
    return name, place, file.offset


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(sorted(names)[:_SHOWN]) + more
