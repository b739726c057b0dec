"""Which photographs a folder or a tar holds, and of which classes: the same for a folder and the tar of it.

A class is a folder, and its photographs are the pictures in it, however deep. Folders around all classes do not matter.
Where `train/` stands beside `val/` or `test/`, one of them is taken. What is not taken is counted.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from elit_serve.errors import DataError
from elit_serve.photographs.photograph import Photograph
from elit_serve.photographs.trees import DiskTree, File, Folder, K, Parts, TarTree, Tree

SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")

Part = Literal["training", "held out"]
PARTS: Mapping[Part, tuple[str, ...]] = {  # of a set that is split at its top, the first that there is
    "training": ("train", "training"),
    "held out": ("val", "valid", "validation", "test", "testing"),
}
_PART_NAMES = frozenset(name for names in PARTS.values() for name in names)

# What systems leave behind in folders, beside all names with a dot in front; not worth a word.
_LITTER_FOLDERS = ("__macosx", "@eadir", "#recycle", "$recycle.bin", "lost+found", "system volume information")
_LITTER_FILES = ("thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
_LITTER = frozenset((*_LITTER_FOLDERS, *_LITTER_FILES))
_MAX_DEPTH = 32  # folders
_MAX_FOLDER_LINKS = 3  # within each other: a few links to one another already make endless ways
_TOO_DEEP = f"folders more than {_MAX_DEPTH} deep"
_CIRCLE = "links to folders around them, or through further links"
_SHOWN_KINDS = 5
_NO_TEXT = ("Cc", "Cs")  # control characters, and bytes that are no UTF-8


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """photographs: sorted by class and name. left_out: how much is not taken, by what it is."""

    source: Path
    photographs: tuple[Photograph, ...]
    left_out: Mapping[str, int]

    @property
    def note(self) -> str | None:
        """One line on what may not be as expected, with numbers: what is not taken, and names that a tar uses again."""
        again = len(self.photographs) - len({(each.label, each.name) for each in self.photographs})
        parts = [f"left out {_listed(self.left_out)}"] if self.left_out else []
        parts += [f"{again:,} photographs have the name of another; all are taken"] if again else []
        return f"{self.source}: {'; '.join(parts)}" if parts else None


def open_data_set(source: Path, part: Part = "training") -> DataSet:
    """The photographs of a folder or an uncompressed tar; of one that is split at its top, those of a part.

    Raises `DataError` when it cannot be read, or holds none.
    """
    left_out: Counter[str] = Counter()
    pictures = _only_pictures(files_of(source, left_out), left_out)
    root = _root({place[:-1] for place, _ in pictures}, source, part)
    found = []
    for place, file in pictures:
        below = place[len(root) :]
        if place[: len(root)] == root and len(below) > 1:
            found.append((below, file))
        else:
            left_out[_why_not(place, root)] += 1
    if not found:
        kinds = ", ".join(SUFFIXES[1:])
        note = f"; left out {_listed(left_out)}" if left_out else ""
        raise DataError(f"{source} holds no class/name.jpg, nor any of {kinds}{note}")
    ordered = sorted(((_photograph(below, file, source), below) for below, file in found), key=_order)
    return DataSet(source=source, photographs=tuple(photograph for photograph, _ in ordered), left_out=left_out)


def files_of(source: Path, left_out: Counter[str]) -> list[tuple[Parts, File]]:
    """All files of a folder or a tar with their places in it; what cannot be taken is counted."""
    try:
        if source.is_dir():
            return list(_walk(DiskTree(source), left_out))
        if source.is_file():
            return list(_walk(TarTree(source), left_out))
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from None
    raise DataError(f"{source} does not exist; a data set is a folder or a tar of class/name.jpg")


def _walk(tree: Tree[K], left_out: Counter[str]) -> Iterator[tuple[Parts, File]]:
    """All files of a tree with their places in it, but for litter; what cannot be taken is counted."""
    top = tree.top()
    todo: list[tuple[Parts, Folder[K], tuple[object, ...], int]] = [((), top, (top.identity,), 0)]
    while todo:
        place, folder, around, links = todo.pop()
        for name in tree.names(folder.key):
            if name.startswith(".") or name.casefold() in _LITTER:
                continue
            found, here = tree.look(folder.key, name), (*place, name)
            if isinstance(found, tuple):
                yield from ((here, file) for file in found)
            elif isinstance(found, str):
                left_out[found] += 1
            elif len(here) > _MAX_DEPTH:
                left_out[_TOO_DEEP] += 1
            elif found.identity in around or links + found.is_link > _MAX_FOLDER_LINKS:
                left_out[_CIRCLE] += 1
            else:
                todo.append((here, found, (*around, found.identity), links + found.is_link))


def _only_pictures(files: list[tuple[Parts, File]], left_out: Counter[str]) -> list[tuple[Parts, File]]:
    """Those whose names end as pictures' do; the others are counted by how theirs end."""
    pictures, kinds = [], Counter[str]()
    for place, file in files:
        if is_picture(place):
            pictures.append((place, file))
        else:
            kinds[printable(_suffix(place)) or "no suffix"] += 1
    if kinds:
        shown = [f"{kind} {count:,}" for kind, count in sorted(kinds.most_common(_SHOWN_KINDS))]
        more = [] if len(kinds) <= _SHOWN_KINDS else [f"{len(kinds) - _SHOWN_KINDS} more kinds"]
        left_out[f"files of other kinds ({', '.join(shown + more)})"] = kinds.total()
    return pictures


def is_picture(place: Parts) -> bool:
    """Whether the name of a file ends as pictures' do."""
    return _suffix(place) in SUFFIXES


def _suffix(place: Parts) -> str:
    return os.path.splitext(place[-1])[1].lower()  # noqa: PTH122 (a path object for each of a million takes long)


def _root(folders: set[Parts], source: Path, part: Part) -> Parts:
    """The folder whose folders are the classes, given all folders with pictures."""
    top = _below_wrapping(folders, ())
    names = sorted(folder[len(top)] for folder in folders if len(folder) > len(top))
    if not is_split(names):
        return top
    with_classes = {folder[len(top)] for folder in folders if len(folder) > len(top) + 1}
    if not with_classes:
        return top
    for wanted in PARTS[part]:
        for name in sorted(with_classes):
            if name.casefold() == wanted:
                return _below_wrapping(folders, (*top, name))
    shown = ", ".join(f"{name}/" for name in dict.fromkeys(names))
    raise DataError(f"{source} is split into {shown}, and none of them is {PARTS[part][0]}/ with classes in it")


def is_split(names: Collection[str]) -> bool:
    """Whether folders of these names are the parts of a set."""
    return len(set(names)) > 1 and all(name.casefold() in _PART_NAMES for name in names)


def _below_wrapping(folders: set[Parts], top: Parts) -> Parts:
    """Further down from `top`, while all classes lie in one folder."""
    while True:
        inside = [folder[len(top) :] for folder in folders if folder[: len(top)] == top and len(folder) > len(top)]
        names = {folder[0] for folder in inside}
        if len(names) != 1 or all(len(folder) == 1 for folder in inside):
            return top
        top = (*top, *names)


def _why_not(place: Parts, root: Parts) -> str:
    """What a picture is that does not lie in a class."""
    for name, wanted in zip(place[:-1], root, strict=False):
        if name != wanted:
            return f"pictures of {printable(name)}/"
    return "pictures in no class"


def _photograph(below: Parts, file: File, source: Path) -> Photograph:
    """`below`: class, any folders, and name."""
    label = unicodedata.normalize("NFC", below[0])
    if any(unicodedata.category(character) in _NO_TEXT for character in label):
        raise DataError(f"{source}: the class folder {label!r} has a name that cannot be written down")
    return Photograph(
        label=label,
        name=printable(unicodedata.normalize("NFC", "/".join(below[1:]))),
        path=file.path,
        file=file.version,
        offset=file.offset,
        size=file.size,
    )


def _order(found: tuple[Photograph, Parts]) -> tuple[str, str, Parts, int]:
    """By class and name; those that differ in their Unicode form only, by that, and equal ones as they come."""
    photograph, below = found
    return photograph.label, photograph.name, below, photograph.offset


def _listed(left_out: Mapping[str, int]) -> str:
    return ", ".join(f"{what}: {count:,}" for what, count in sorted(left_out.items()))


def printable(name: str) -> str:
    """What a terminal would not show, escaped."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)
