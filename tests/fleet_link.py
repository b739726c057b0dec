"""Replicas of this process, as an ingress reaches them: what goes between them is written and read as between two."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Mapping
from typing import TypeVar

from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.errors import ElitError
from elit_serve.fleet.link import ReplicaLost
from elit_serve.fleet.messages import Published, ReplicaFacts, Reply, SentOrder
from elit_serve.fleet.replica import Replica

T = TypeVar("T")


def carried(message: T) -> T:
    """As it arrives in another process."""
    copy: T = pickle.loads(pickle.dumps(message))  # noqa: S301 (what has just been written)
    return copy


class LocalLink:
    """A `Link`. A replica that is taken out of `replicas` is lost; one that is put into `hanging` says nothing."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self.replicas = dict(replicas)
        self.hanging: set[str] = set()

    async def make(self, replica: str, sent: SentOrder) -> AsyncIterator[Reply]:
        replies = self._at(replica).make(carried(sent))
        try:
            async for reply in replies:
                self._at(replica)
                if replica in self.hanging:
                    await asyncio.Event().wait()
                yield carried(reply)
        finally:
            await replies.aclose()  # type: ignore[attr-defined]

    async def hurry(self, replica: str, order_id: str) -> bool:
        return await self._at(replica).hurry(order_id)

    async def forecast(self, replica: str, sent: SentOrder) -> Forecast | ElitError:
        return carried(await self._at(replica).forecast(carried(sent)))

    async def facts(self, replica: str) -> ReplicaFacts:
        return carried(await self._at(replica).facts())

    async def facts_of_all(self) -> list[ReplicaFacts]:
        return [await self.facts(name) for name in self.replicas]

    async def publish(self, *, keeps_account: bool) -> list[Published]:
        return [carried(await each.publish(keeps_account=keeps_account)) for each in self._answering]

    async def in_flight(self, max_pictures: int) -> list[InFlight]:
        return [carried(await each.in_flight(max_pictures)) for each in self._answering]

    async def close(self) -> None:
        self.replicas.clear()

    @property
    def _answering(self) -> list[Replica]:
        return [each for name, each in self.replicas.items() if name not in self.hanging]

    def _at(self, replica: str) -> Replica:
        if replica not in self.replicas:
            raise ReplicaLost(replica)
        return self.replicas[replica]
