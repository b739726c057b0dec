"""Connections between ingresses and replicas: who is not there, who says nothing, and who leaves."""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import pytest
from fleet_link import LocalLink
from serving import COST, AsPredicted, as_a_fleet, running_models

from elit_serve.engine.pipeline import Pipeline
from elit_serve.fleet import door, line
from elit_serve.fleet.door import Address, Door
from elit_serve.fleet.handshake import KEY_BYTES, NONCE_BYTES, SILENCE_MS, greet
from elit_serve.fleet.line import Line, Lines
from elit_serve.fleet.link import ReplicaLost
from elit_serve.fleet.messages import HowAreYou, Reply, SentOrder
from elit_serve.fleet.replica import Replica
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.settings import Settings


def address_of(listener: socket.socket, replica: str = "first") -> Address:
    host, port = listener.getsockname()
    return Address(replica=replica, host=host, port=port, key=bytes(KEY_BYTES))


def test_who_does_not_take_a_connection_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "CONNECT_S", 0.2)
    with ExitStack() as stack, socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # more than there is room for before anybody accepts
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(ReplicaLost):
            asyncio.run(asyncio.wait_for(Line.to(address_of(full)), 60))


def test_one_replica_that_is_not_there_keeps_nobody_from_another(
    replica: Replica, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        gone = address_of(closed, "gone")

    async def scenario() -> list[str]:
        opened, lines = Door(replica, "127.0.0.1"), Lines()
        await lines.connect_all([gone, await opened.address()])
        told = [await each.published(HowAreYou(keeps_account=False)) for each in lines.open]
        lines.close()
        await opened.close()
        return [each.replica for each in told]

    assert asyncio.run(scenario()) == ["first"]
    (record,) = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert f"nobody is at 127.0.0.1:{gone.port}, where replica gone should be" in record.getMessage()


def test_who_stops_greeting_leaves() -> None:
    async def scenario() -> None:
        come, left = asyncio.Event(), asyncio.Event()

        async def silent(reader: StreamReader, writer: StreamWriter) -> None:
            come.set()
            await reader.read()
            left.set()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            greeting = asyncio.create_task(Line.to(address_of(server.sockets[0])))
            await come.wait()
            greeting.cancel()
            await asyncio.wait_for(left.wait(), 60)

    asyncio.run(scenario())


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system knows no such time")
def test_either_end_notices_when_the_other_is_silent() -> None:
    found = list[int]()

    async def end(reader: StreamReader, writer: StreamWriter, *, as_replica: bool) -> None:
        await greet(reader, writer, bytes(KEY_BYTES), as_replica=as_replica)
        connection = writer.get_extra_info("socket")
        found.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        writer.close()

    async def scenario() -> None:
        greeted = asyncio.Event()

        async def replica_s(reader: StreamReader, writer: StreamWriter) -> None:
            await end(reader, writer, as_replica=True)
            greeted.set()

        async with await asyncio.start_server(replica_s, "127.0.0.1", 0) as server:
            await end(*await asyncio.open_connection(*server.sockets[0].getsockname()), as_replica=False)
            await asyncio.wait_for(greeted.wait(), 60)

    asyncio.run(scenario())
    assert found == [SILENCE_MS, SILENCE_MS]


def test_strangers_are_few_at_a_time(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "MAX_STRANGERS", 1)

    async def scenario() -> None:
        opened = Door(replica, "127.0.0.1")
        address = await opened.address()
        reader, stranger = await asyncio.open_connection(address.host, address.port)
        await reader.readexactly(NONCE_BYTES)  # it is being greeted
        with pytest.raises(ReplicaLost):
            await Line.to(address)
        stranger.close()
        found = None
        while found is None:
            try:
                found = await Line.to(address)
            except ReplicaLost:
                await asyncio.sleep(0.05)
        assert (await found.published(HowAreYou(keeps_account=False))).replica == "first"
        found.close()
        await opened.close()

    asyncio.run(asyncio.wait_for(scenario(), 60))


class Remembering(LocalLink):
    """made: what was told of each offer."""

    made: list[Any]

    def make(self, replica: str, sent: SentOrder) -> AsyncIterator[Reply]:
        replies = super().make(replica, sent)
        self.made = [*getattr(self, "made", []), replies]
        return replies


def test_an_offer_that_is_refused_is_over(tiny_pipeline: Pipeline) -> None:
    settings = Settings(response_ms=0)
    slots = AsPredicted(tiny_pipeline, num_slots=num_slots(settings))
    slots.cost = COST
    model = LoadedModel(pipeline=tiny_pipeline, executor=slots, cost=COST)
    with as_a_fleet(model, settings, Remembering) as fleet, running_models([model], settings, [fleet]) as server:
        assert server.generate({"label": "rose", "latency_ms": 1}).status_code == 422
        assert [replies.ag_frame for replies in fleet.link.made] == [None]
