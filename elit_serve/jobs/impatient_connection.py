"""A connection to PostgreSQL that does not wait for ever. Needs psycopg, which only some installations have.

A server that stands still, as in a machine that is suspended, limits no statement, and its system's TCP goes on
answering: nothing but the client's own clock tells that it is not there.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg

T = TypeVar("T")

ANSWER_S = 5.0  # a server that runs has said by then that a statement took too long


class ImpatientConnection(psycopg.Connection[Any]):
    """Is closed when an answer takes too long."""

    def wait(self, gen: Generator[Any, Any, T], *others: Any, **named: Any) -> T:
        return super().wait(self._hurried(gen), *others, **named)

    def _hurried(self, steps: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """The steps of a talk with the server, with which psycopg goes on whenever there is something to read, and
        several times a second."""
        until_s = time.monotonic() + ANSWER_S
        try:
            wanted = next(steps)
            while True:
                found = yield wanted
                if time.monotonic() > until_s:
                    self.close()
                    raise psycopg.OperationalError(f"no answer within {ANSWER_S:.0f} s")
                wanted = steps.send(found)
        except StopIteration as end:
            result: T = end.value
            return result
