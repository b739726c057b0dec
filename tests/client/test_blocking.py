"""What is written for asyncio runs without an event loop, if all that it waits for blocks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from elit_serve.client import Client
from elit_serve.client.blocking import done, steps
from elit_serve.errors import ServerUnreachable


async def twice(number: int) -> int:
    return 2 * number


async def counted(log: list[str], upto: int) -> AsyncGenerator[int, None]:
    try:
        for number in range(upto):
            yield await twice(number)
    finally:
        log.append("closed")


def test_what_a_coroutine_returns_or_raises_is_what_its_caller_gets() -> None:
    async def fails() -> int:
        raise ValueError("of its own")

    assert done(twice(4)) == 8
    with pytest.raises(ValueError, match="of its own"):
        done(fails())


def test_a_generator_is_closed_with_the_one_that_steps_through_it() -> None:
    log: list[str] = []
    assert list(steps(counted(log, 3))) == [0, 2, 4]
    assert log == ["closed"]
    unfinished = steps(counted(log, 3))
    assert next(unfinished) == 0
    assert log == ["closed"]
    unfinished.close()
    assert log == ["closed", "closed"]


def test_what_waits_for_an_event_loop_is_a_mistake_of_ours() -> None:
    work = asyncio.sleep(1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        done(work)


def test_the_client_that_blocks_can_be_used_where_an_event_loop_runs(start_raw: Any) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"
    url, _ = start_raw(answer)

    async def ask() -> str:
        with Client(url) as client:
            return client.metrics()

    assert asyncio.run(ask()) == "hello"


def test_what_cannot_be_reached_is_the_same_error_in_a_stream() -> None:
    with Client("http://127.0.0.1:9") as client, pytest.raises(ServerUnreachable):
        next(client.stream(prompt="tulip"))
