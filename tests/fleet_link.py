"""Replicas of this process, as an ingress reaches them: what goes between them is written and read as between two."""

from __future__ import annotations

import asyncio
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, suppress
from typing import TypeVar

from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.errors import ElitError
from elit_serve.fleet.door import Door
from elit_serve.fleet.line import Lines
from elit_serve.fleet.link import ReplicaLost
from elit_serve.fleet.messages import HowAreYou, Published, ReplicaFacts, Reply, SentOrder
from elit_serve.fleet.replica import Replica

T = TypeVar("T")


def carried(message: T) -> T:
    """As it arrives in another process."""
    copy: T = pickle.loads(pickle.dumps(message))  # noqa: S301 (what has just been written)
    return copy


class LocalLink:
    """A `Link`. A replica that is taken out of `replicas` is lost; one that is put into `hanging` says nothing.

    replied: how often each has been heard of what it makes.
    """

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self.replicas = dict(replicas)
        self.doors = {name: Door(replica, "127.0.0.1") for name, replica in replicas.items()}
        self.lines = Lines()
        self.hanging: set[str] = set()
        self.replied: Counter[str] = Counter()

    async def make(self, replica: str, sent: SentOrder) -> AsyncIterator[Reply]:
        self._at(replica)
        async with aclosing(self.lines.to(replica).make(sent)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                self._at(replica)
                if replica in self.hanging:
                    await asyncio.Event().wait()
                self.replied[replica] += 1
                yield reply

    async def hurry(self, replica: str, order_id: str) -> bool:
        return await self._at(replica).hurry(order_id)

    async def forecast(self, replica: str, sent: SentOrder) -> Forecast | ElitError:
        return carried(await self._at(replica).forecast(carried(sent)))

    async def facts(self, replica: str) -> ReplicaFacts:
        return carried(await self._at(replica).facts())

    async def facts_of_all(self) -> list[ReplicaFacts]:
        return [await self.facts(name) for name in self.replicas]

    async def publish(self, *, keeps_account: bool) -> list[Published]:
        told = []
        for name in self._answering:
            await self.lines.connect(await self.doors[name].address())
            with suppress(ReplicaLost):
                told.append(await self.lines.to(name).published(HowAreYou(keeps_account=keeps_account)))
        return told

    async def in_flight(self, max_pictures: int) -> list[InFlight]:
        return [carried(await self.replicas[name].in_flight(max_pictures)) for name in self._answering]

    async def break_lines(self) -> None:
        self.lines.close()

    async def close(self) -> None:
        self.replicas.clear()
        self.lines.close()
        for door in self.doors.values():
            await door.close()

    @property
    def _answering(self) -> list[str]:
        return [name for name in self.replicas if name not in self.hanging]

    def _at(self, replica: str) -> Replica:
        if replica not in self.replicas:
            raise ReplicaLost(replica)
        return self.replicas[replica]
