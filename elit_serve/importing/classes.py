"""What classes are called where weights know them by number only."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from elit_serve.errors import InvalidInput
from elit_serve.files.opening import read_text

MAX_BYTES = 8 << 20
IMAGENET_CLASSES = 1000  # of the challenge of 2012, ordered by their WordNet number as everywhere


def class_names(count: int, file: Path | None) -> tuple[str, ...]:
    """One per line of a file; else ImageNet's for a thousand classes, and numbers for any other count."""
    if file is not None:
        return _names_in(file, count)
    if count == IMAGENET_CLASSES:
        return tuple(files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
    return tuple(str(index) for index in range(count))


def _names_in(file: Path, count: int) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in read_text(file, MAX_BYTES).splitlines() if line.strip())
    except (OSError, ValueError) as error:
        raise InvalidInput("--classes", str(file), f"a text file with one name per line; {error}") from None
    if len(names) != count:
        raise InvalidInput("--classes", str(file), f"{count} names, one per line; it has {len(names)}")
    if len(set(names)) != count:
        twice = next(name for index, name in enumerate(names) if name in names[:index])
        raise InvalidInput("--classes", str(file), f"names that differ; {twice!r} is there twice")
    return names
