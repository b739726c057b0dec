"""The state of something, made at most a few times a second however many ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from starlette.concurrency import run_in_threadpool

from elit_serve.server.fairness import TokenBucket

T = TypeVar("T")

PER_SECOND = 4
BURST = 8  # in a row for who asks now and then, as tests and people do


class Snapshots(Generic[T]):
    """Everybody gets a state that was read after they asked, and all who wait for one get the same.

    make: reads it; on a thread, as it takes milliseconds.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._bucket: TokenBucket | None = None
        self._num_begun = 0
        self._latest: tuple[int, T] | None = None

    async def fresh(self) -> T:
        """A state of no earlier than this call."""
        seen = self._num_begun
        async with self._making:
            if self._latest is None or self._latest[0] <= seen:
                await self._may_make()
                self._num_begun += 1
                self._latest = self._num_begun, await run_in_threadpool(self._make)
            return self._latest[1]

    async def _may_make(self) -> None:
        now_s = asyncio.get_running_loop().time
        self._bucket = self._bucket or TokenBucket(per_minute=60 * PER_SECOND, burst=BURST, now_s=now_s())
        while (wait_s := self._bucket.wait_s(now_s())) > 0:
            await asyncio.sleep(wait_s)
