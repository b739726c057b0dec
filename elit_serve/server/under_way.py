"""Requests whose callers wait for their pictures, by the ids of the requests, for who wants them sooner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from elit_serve.errors import NotBegun, RequestNotFound
from elit_serve.server.orders import Taken


class UnderWay:
    """Used on the event loop, but for `finish`. A caller may have given several requests the same id."""

    def __init__(self) -> None:
        self._taken: dict[tuple[str | None, str], tuple[Taken, ...]] = {}

    @contextmanager
    def waited_for(self, request_id: str, taken: Taken) -> Iterator[None]:
        """Within it the request can be found."""
        key = taken.order.owner, request_id
        self._taken[key] = (*self._taken.get(key, ()), taken)
        try:
            yield
        finally:
            others = tuple(other for other in self._taken[key] if other is not taken)
            if others:
                self._taken[key] = others
            else:
                del self._taken[key]

    def finish(self, request_id: str, owner: str | None) -> None:
        """Has the pictures end with the fewest steps that their state allows; waits for the engine's lock.

        Raises `RequestNotFound`, also for the requests of another owner, and `NotBegun`.
        """
        found = self._taken.get((owner, request_id))
        if found is None:
            raise RequestNotFound
        hurried = [taken.engine.worker.hurry(taken.future) for taken in found]
        if not any(hurried):
            raise NotBegun
