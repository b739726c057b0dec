"""What an ingress hears of replicas while Ray fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from elit_serve.fleet.cluster import Cluster, ClusterLost
from elit_serve.fleet.door import Door
from elit_serve.fleet.replica import Replica

ray_serve = pytest.importorskip("elit_serve.fleet.ray_serve")

THERE = Cluster("", [])


class Handle:
    """Of Ray Serve, as far as a `RayLink` uses it. ask: one replica; without it Ray says that none runs, or fails."""

    def __init__(self, ask: Callable[[str], Awaitable[Any]] | None = None, *, failure: Exception | None = None) -> None:
        self.ask = ask
        self.failure = failure or ray_serve.RayServeException("no replica runs")

    def broadcast(self, method: str, *_: object) -> Answers:
        return Answers(self, method)

    async def shutdown_async(self) -> None:
        pass


class Answers:
    def __init__(self, handle: Handle, method: str) -> None:
        self._handle = handle
        self._method = method

    async def _fetch_replica_results_async(self) -> list[Answers]:
        if self._handle.ask is None:
            raise self._handle.failure
        return [self]

    async def get_async(self) -> Any:
        assert self._handle.ask is not None
        return await self._handle.ask(self._method)


def test_a_ray_that_fails_is_no_word_of_anybody_however_often_it_is_asked() -> None:
    async def scenario() -> None:
        link = ray_serve.RayLink(Handle(failure=ray_serve.RayError("no answer")), THERE)
        for _ in range(3):
            with pytest.raises(ray_serve.RayError):
                await link.publish(keeps_account=False)
        await link.close()

    asyncio.run(scenario())


def test_a_ray_that_makes_a_new_replica_knows_of_none(replica: Replica) -> None:
    async def scenario() -> None:
        handle = Handle()
        door, link = Door(replica, "127.0.0.1"), ray_serve.RayLink(handle, THERE)
        for _ in range(3):
            assert await link.publish(keeps_account=False) == []
        handle.ask = lambda _: door.address()
        assert [each.replica for each in await link.publish(keeps_account=False)] == ["first"]
        await link.close()
        await door.close()

    asyncio.run(scenario())


def test_what_replicas_tell_is_heard_while_ray_fails(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_serve, "LOOK_S", 0.0)

    async def scenario() -> list[list[str]]:
        door = Door(replica, "127.0.0.1")
        handle = Handle(lambda _: door.address())
        link = ray_serve.RayLink(handle, THERE)
        heard = [await link.publish(keeps_account=False)]
        handle.ask = None
        heard += [await link.publish(keeps_account=False) for _ in range(2)]
        await link.close()
        await door.close()
        return [[each.replica for each in told] for told in heard]

    assert asyncio.run(scenario()) == [["first"]] * 3


class Gone(Cluster):
    def check(self) -> None:
        raise ClusterLost("Ray is gone")


def test_a_ray_that_is_gone_is_told_whatever_replicas_tell(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_serve, "LOOK_S", 0.0)

    async def scenario() -> None:
        door = Door(replica, "127.0.0.1")
        link = ray_serve.RayLink(Handle(lambda _: door.address()), THERE)
        assert await link.publish(keeps_account=False)
        link._cluster = Gone("", [])
        with pytest.raises(ClusterLost):
            await link.publish(keeps_account=False)
        await link.close()
        await door.close()

    asyncio.run(scenario())


def test_nothing_is_in_flight_where_no_replica_runs() -> None:
    async def scenario() -> list[Any]:
        return await ray_serve.RayLink(Handle(), THERE).in_flight(10)

    assert asyncio.run(scenario()) == []
