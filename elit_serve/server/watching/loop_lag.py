"""How long whatever becomes ready must wait for the event loop: all requests do whenever something holds it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from elit_serve.clock import Clock

PERIOD_S = 0.02


@asynccontextmanager
async def loop_lag_measured(observe: Callable[[float], None], clock: Clock) -> AsyncIterator[None]:
    """Gives `observe` the lag of the running loop in seconds, every `PERIOD_S` until the block ends."""
    watching = asyncio.create_task(_watch(observe, clock))
    try:
        yield
    finally:
        watching.cancel()


async def _watch(observe: Callable[[float], None], clock: Clock) -> None:
    """Moments that passed during a stall count as well, each with its own wait: as often as a request meets them."""
    due_s = clock.now() + PERIOD_S
    while True:
        await asyncio.sleep(max(0.0, due_s - clock.now()))
        now_s = clock.now()
        while due_s <= now_s:
            observe(now_s - due_s)
            due_s += PERIOD_S
