"""Who waits for which replica, and which of them have gone silent without having ended: one that hangs, or whose node
is lost, ends no connection."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager

from elit_serve.fleet.link import ReplicaLost

MAX_MISSED = 3  # rounds in a row in which all are asked how they are; who misses one may just be busy


class Attention:
    """Used on one event loop."""

    def __init__(self) -> None:
        self._missed: Counter[str] = Counter()
        self._waits: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)

    def after_round(self, told: Collection[str]) -> set[str]:
        """told: those who have answered. Gives those who have been silent for too long, for whom nobody waits now."""
        for name in {*self._missed, *told}:
            self._missed[name] = 0 if name in told else self._missed[name] + 1
        silent = {name for name, missed in self._missed.items() if missed >= MAX_MISSED}
        for name in silent:
            del self._missed[name]
            for wait in self._waits.pop(name, set()):
                wait.reschedule(asyncio.get_running_loop().time())
        return silent

    @asynccontextmanager
    async def waiting_for(self, replica: str) -> AsyncIterator[None]:
        """Raises `ReplicaLost` where it is when it has been silent for too long."""
        wait = asyncio.timeout(None)
        try:
            async with wait:
                self._waits[replica].add(wait)
                yield
        except TimeoutError:
            raise ReplicaLost(replica) from None
        finally:
            self._waits[replica].discard(wait)
