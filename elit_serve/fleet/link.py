"""The way from one ingress to all replicas, as a protocol: what is behind it is another module's business."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.errors import ElitError
from elit_serve.fleet.messages import Published, ReplicaFacts, Reply, SentOrder


class ReplicaLost(Exception):
    """A replica has gone, or does not answer; what it had taken it will not make."""


class Link(Protocol):
    """Used on one event loop. What is asked of one replica may raise `ReplicaLost`; whoever does not answer all that
    are asked is left out. Where the replica that is named is gone, another one may answer in its place."""

    def make(self, replica: str, sent: SentOrder) -> AsyncIterator[Reply]:
        """See `Replica.make`. Closing the iterator gives the order up."""

    async def hurry(self, replica: str, order_id: str) -> bool: ...

    async def forecast(self, replica: str, sent: SentOrder) -> Forecast | ElitError: ...

    async def facts(self, replica: str) -> ReplicaFacts: ...

    async def facts_of_all(self) -> list[ReplicaFacts]: ...

    async def publish(self, *, keeps_account: bool) -> list[Published]: ...

    async def close(self) -> None:
        """Nothing is asked any more."""

    async def in_flight(self, max_pictures: int) -> list[InFlight]: ...
