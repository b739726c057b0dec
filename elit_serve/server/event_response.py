"""The one kind of answer that is a stream of server-sent events, with what proxies must know about it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from starlette.responses import StreamingResponse

HEADERS = {
    "Cache-Control": "no-store",  # what happens now is nobody's answer later
    "X-Accel-Buffering": "no",  # nginx would otherwise collect events before it hands them on
}


class EventResponse(StreamingResponse):
    """Server-sent events, each sent on when it is made. events: whole ones, as they are written."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str]) -> None:
        super().__init__(events, headers=HEADERS)
