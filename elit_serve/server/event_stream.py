"""Server-sent events of one request, from its first preview to its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from elit_serve.engine.order import Outcome, Preview
from elit_serve.errors import ElitError
from elit_serve.server.event_response import EventResponse
from elit_serve.server.service import Taken
from elit_serve.server.watching.metrics import Metrics

KEEP_ALIVE_S = 15.0  # proxies give up on connections on which nothing is said


class PreviewQueue:
    """Carries previews from the engine's threads to the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Preview | None] = asyncio.Queue()

    def put(self, preview: Preview | None) -> None:
        """From any thread; None is the end."""
        self._loop.call_soon_threadsafe(self._queue.put_nowait, preview)

    async def get(self) -> Preview | None:
        return await self._queue.get()


class EventStream(EventResponse):
    """`event: ...` and `data: ...` for every preview, and for the end. Gives the work up when its caller leaves.

    An event is a model whose `type` names it. error_of: what is sent in place of the end if that goes wrong.
    """

    def __init__(
        self,
        taken: Taken,
        previews: PreviewQueue,
        *,
        preview_event: Callable[[Preview], BaseModel],
        end_event: Callable[[Outcome], BaseModel],
        error_of: Callable[[ElitError], str],
        metrics: Metrics,
    ) -> None:
        super().__init__(self._events())
        self._taken = taken
        self._previews = previews
        self._preview_event = preview_event
        self._end_event = end_event
        self._error_of = error_of
        self._metrics = metrics
        self._has_ended = False
        taken.future.add_done_callback(lambda _: previews.put(None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["taken"] = self._taken
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._has_ended:
                self._taken.future.cancel()
                self._metrics.generations.labels("cancelled").inc()

    async def _events(self) -> AsyncIterator[str]:
        while True:
            try:
                preview = await asyncio.wait_for(self._previews.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield ": it is still being made\n\n"
                continue
            if preview is None:
                break
            yield await run_in_threadpool(_written, self._preview_event(preview))
        self._has_ended = True
        try:
            end = self._end_event(self._taken.future.result())
        except ElitError as error:
            self._metrics.ended(error)
            yield f"event: error\ndata: {self._error_of(error)}\n\n"
        else:
            yield await run_in_threadpool(_written, end)


def _written(event: Any) -> str:
    return f"event: {event.type}\ndata: {event.model_dump_json()}\n\n"
