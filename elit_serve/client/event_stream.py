"""Server-sent events: pieces of a stream in, whole events out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Event:
    """name: `message` where the server gives none. id: by which the server can go on after it, if it can."""

    name: str
    data: str
    id: str | None = None


class EventParser:
    """One stream. Comments, which keep connections alive, are dropped."""

    def __init__(self) -> None:
        self._rest = b""
        self._name = ""
        self._id: str | None = None
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this piece completes."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events = [self._take(line.removesuffix(b"\r").decode("utf-8", "replace")) for line in lines]
        return [event for event in events if event is not None]

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._completed()
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "id":
            self._id = value
        elif field == "data":
            self._data.append(value)
        return None

    def _completed(self) -> Event | None:
        name, data = self._name or "message", self._data
        self._name, self._data = "", []
        return Event(name=name, data="\n".join(data), id=self._id) if data else None
