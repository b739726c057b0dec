"""Runs without an event loop what is written for asyncio, where nothing waits for one: whatever it awaits blocks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def done(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("it waits for an event loop")


def steps(work: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """What an asynchronous generator yields, which is closed with this one."""
    try:
        while True:
            yield done(work.__anext__())
    except StopAsyncIteration:
        return
    finally:
        done(work.aclose())
