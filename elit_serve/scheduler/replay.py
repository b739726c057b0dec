"""A scheduler as a line of text, and back: what a log must hold so that a decision can be made again elsewhere.

Everything a scheduler consists of is values and classes of this package and of `plans`, so its whole state can be
written as JSON: each object once, with a number, and from then on by that number. Only classes of these two are made
when it is read, and nothing of the text is run. The text is compressed: it has the whole cost table in it.
"""

from __future__ import annotations

import json
import zlib
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from typing import Any

from elit_serve.scheduler.core import RequestScheduler

ROOT = "elit_serve."
PACKAGES = ("elit_serve.scheduler.", "elit_serve.plans.")
PLAIN = (bool, int, float, str, type(None))
CONTAINERS = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
MAPPINGS = {kind.__name__: kind for kind in (dict, Counter)}


def as_text(scheduler: RequestScheduler) -> str:
    """The whole state of a scheduler in base64, some ten thousand characters long."""
    return b64encode(zlib.compress(json.dumps(_StateWriter().written(scheduler)).encode())).decode()


def from_text(text: str) -> RequestScheduler:
    """The scheduler that `as_text` was given. Raises `ValueError` for any other text."""
    try:
        scheduler = _StateReader().read(json.loads(zlib.decompress(b64decode(text, validate=True))))
    except (ValueError, zlib.error, KeyError, TypeError, AttributeError, ImportError) as error:
        raise ValueError(f"no scheduler's state: {error}") from error
    if not isinstance(scheduler, RequestScheduler):
        raise ValueError(f"no scheduler's state: a {type(scheduler).__name__}")
    return scheduler


class _StateWriter:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept: list[object] = []  # so that no other object gets the identity of one that was written

    def written(self, value: object) -> object:
        if isinstance(value, PLAIN) and not isinstance(value, Enum):
            return value
        if id(value) in self._numbers:
            return {"again": self._numbers[id(value)]}
        number = self._numbers[id(value)] = len(self._kept)
        self._kept.append(value)
        return {"number": number, **self._parts(value)}

    def _parts(self, value: Any) -> dict[str, object]:
        kind = type(value)
        if kind in MAPPINGS.values():
            return {"kind": kind.__name__, "pairs": [[self.written(part) for part in pair] for pair in value.items()]}
        if kind in CONTAINERS.values():
            return {"kind": kind.__name__, "parts": [self.written(part) for part in value]}
        name = f"{kind.__module__.removeprefix(ROOT)}:{kind.__qualname__}"
        if isinstance(value, Enum):
            return {"class": name, "parts": [value.value]}
        if isinstance(value, tuple):
            return {"class": name, "parts": [self.written(part) for part in value]}
        return {"class": name, "fields": {field: self.written(part) for field, part in _fields(value)}}


class _StateReader:
    def __init__(self) -> None:
        self._objects: dict[int, Any] = {}

    def read(self, written: Any) -> Any:
        if not isinstance(written, dict):
            return written
        if "again" in written:
            return self._objects[written["again"]]
        number = written["number"]
        if "kind" in written:
            return self._container(number, written)
        kind = _class_named(written["class"])
        if "parts" in written:
            self._objects[number] = kind(*map(self.read, written["parts"]))
            return self._objects[number]
        made = self._objects[number] = object.__new__(kind)
        for field, part in written["fields"].items():
            object.__setattr__(made, field, self.read(part))
        return made

    def _container(self, number: int, written: dict[str, Any]) -> Any:
        """Those that can change are known before their parts are read, which may hold them."""
        made: Any
        if "pairs" in written:
            made = self._objects[number] = MAPPINGS[written["kind"]]()
            made.update((self.read(key), self.read(value)) for key, value in written["pairs"])
            return made
        kind = CONTAINERS[written["kind"]]
        parts = map(self.read, written["parts"])
        if kind in (list, deque):
            made = self._objects[number] = kind()
            made.extend(parts)
        else:
            made = self._objects[number] = kind(parts)
        return made


def _fields(value: object) -> Iterator[tuple[str, object]]:
    """What an object holds, in slots or not."""
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        for name in getattr(kind, "__slots__", ()):
            if hasattr(value, name):
                yield name, getattr(value, name)


def _class_named(name: str) -> type[Any]:
    module, _, qualified = name.partition(":")
    if not (ROOT + module).startswith(PACKAGES):
        raise ValueError(f"{name} is no class of a scheduler")
    found = getattr(import_module(ROOT + module), qualified)
    if not isinstance(found, type) or not found.__module__.startswith(PACKAGES):
        raise ValueError(f"{name} is no class of a scheduler")
    return found
