"""Pictures while they are made, as OpenAI streams one: its previews, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from elit_serve.engine.picture import Outcome, Preview
from elit_serve.errors import ElitError
from elit_serve.http.events import EventStream, Mailbox, event
from elit_serve.http.faults import fault_of
from elit_serve.server.openai.errors import error_json
from elit_serve.server.openai.schemas import CompletedEvent, PartialImageEvent
from elit_serve.server.orders import Taken
from elit_serve.server.under_way import UnderWay
from elit_serve.server.watching.metrics import EngineMetrics


class ImageStream(EventStream):
    """An event for every preview, and for every picture at the end. Gives the work up when its caller leaves."""

    def __init__(
        self,
        taken: Taken,
        previews: Mailbox[Preview],
        *,
        preview_event: Callable[[Preview], PartialImageEvent],
        end_events: Callable[[Outcome], list[CompletedEvent]],
        metrics: EngineMetrics,
        under_way: UnderWay,
    ) -> None:
        super().__init__(self._events())
        self._taken = taken
        self._previews = previews
        self._preview_event = preview_event
        self._end_events = end_events
        self._metrics = metrics
        self._under_way = under_way
        self._has_ended = False
        taken.future.add_done_callback(lambda _: previews.put(None))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["taken"] = self._taken
        try:
            with self._under_way.waited_for(scope["state"]["request_id"], self._taken):
                await super().__call__(scope, receive, send)
        finally:
            if not self._has_ended:
                # on a thread, for which the engine's lock is needed
                asyncio.get_running_loop().run_in_executor(None, self._taken.future.cancel)
                self._metrics.cancelled()

    async def _events(self) -> AsyncIterator[bytes]:
        async for preview in self._previews.events(lambda preview: _written(self._preview_event(preview))):
            yield preview
        self._has_ended = True
        try:
            ends = self._end_events(self._taken.future.result())
        except ElitError as error:
            self._metrics.ended(error)
            yield event("error", error_json(fault_of(error)))
        else:
            for end in ends:
                yield await run_in_threadpool(_written, end)


def _written(told: PartialImageEvent | CompletedEvent) -> bytes:
    return event(told.type, told)
