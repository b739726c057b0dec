"""The one kind of answer that is a stream of server-sent events, with what proxies must know about it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

HEADERS = {
    "Cache-Control": "no-store",  # what happens now is nobody's answer later
    "X-Accel-Buffering": "no",  # nginx would otherwise collect events before it hands them on
}


class EventResponse(StreamingResponse):
    """Server-sent events, each sent on when it is made; their request leaves its place to others.

    events: whole ones, as they are written. `enter_stream` bounds how many there may be.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["leave_place"]()
        await super().__call__(scope, receive, send)
