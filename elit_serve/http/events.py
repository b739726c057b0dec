"""Server-sent events: how they are written, sent, kept alive, bounded and described. No other module knows.

On FastAPI's own support, but for its routes that yield: those answer with nothing else, and ours refuse before their
first event, with whatever status says why, and one of them answers with JSON where no stream is asked for.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.sse import KEEPALIVE_COMMENT, EventSourceResponse, format_sse_event
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.errors import Overloaded, RateLimited
from elit_serve.http.callers import owner_of

T = TypeVar("T")

MEDIA_TYPE = EventSourceResponse.media_type
HEADERS = {
    "Cache-Control": "no-store",  # what happens now is nobody's answer later
    "X-Accel-Buffering": "no",  # nginx would otherwise collect events before it hands them on
}
KEEP_ALIVE_S = 15.0  # proxies give up on connections on which nothing is said
RETRY_S = 5.0  # until the next try of who may open no more streams: nobody knows when one ends


def event(name: str, data: BaseModel | str, *, event_id: str | None = None) -> bytes:
    """An event as it is sent. data: JSON, or what becomes that. event_id: by which a reader may go on after it."""
    text = data if isinstance(data, str) else data.model_dump_json()
    return format_sse_event(data_str=text, event=name, id=event_id)


class EventStream(EventSourceResponse):
    """The answer that is a stream of events, each sent on when it is made; its request leaves its place to others.

    events: as `event` writes them. `enter_stream` bounds how many streams there may be.
    """

    def __init__(self, events: AsyncIterator[bytes]) -> None:
        super().__init__(events, headers=HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"]["leave_place"]()
        await super().__call__(scope, receive, send)


class Mailbox(Generic[T]):
    """Carries what happens on other threads to the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[T | None] = asyncio.Queue()

    def put(self, item: T | None) -> None:
        """From any thread; None is the end."""
        with suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, item)

    async def events(self, written: Callable[[T], bytes]) -> AsyncIterator[bytes]:
        """Until the end, whatever comes as `written` writes it, on a thread; and comments while nothing does."""
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_S):
                    item = await self._queue.get()
            except TimeoutError:
                yield KEEPALIVE_COMMENT
                continue
            if item is None:
                return
            yield await run_in_threadpool(written, item)


def enter_stream(request: Request) -> None:
    """To be called before the work for a stream begins; it counts until its request ends, whatever becomes of it.

    Raises `RateLimited` where its key has too many, `Overloaded` where there are too many in all.
    """
    request.state.enter_stream(owner_of(request))


class StreamLimits:
    """Bounds streams, which may last for hours, for each key and in all; they are apart from requests. Without keys
    there is only the bound in all."""

    def __init__(self, app: ASGIApp, *, max_streams: int, max_streams_per_key: int) -> None:
        self._app = app
        self._max_streams = max_streams
        self._max_per_key = max_streams_per_key
        self._num_streams = 0
        self._by_key: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entered: list[str | None] = []

        def enter(owner: str | None) -> None:
            self._check(owner)
            self._num_streams += 1
            self._by_key[owner] += 1
            entered.append(owner)

        scope["state"]["enter_stream"] = enter
        try:
            await self._app(scope, receive, send)
        finally:
            self._num_streams -= len(entered)
            self._by_key.subtract(entered)

    def _check(self, owner: str | None) -> None:
        if owner is not None and self._by_key[owner] >= self._max_per_key:
            raise RateLimited(owner, RETRY_S, f"has {self._max_per_key} streams open, which is the limit")
        if self._num_streams >= self._max_streams:
            raise Overloaded("too_many_streams", RETRY_S)


# In the OpenAPI document


def stream_content(events: Mapping[str, type[BaseModel]]) -> dict[str, Any]:
    """The `content` of a response that streams events, whose data are models, by their names.

    Schemas stand in the document as a whole, because FastAPI gathers only those of JSON bodies for references.
    """
    variants = [_event_schema(name, model) for name, model in events.items()]
    return {MEDIA_TYPE: {"itemSchema": {"oneOf": variants}}}


def is_stream(operation: dict[str, Any]) -> bool:
    """Whether an operation of the document answers with events, whatever it is asked."""
    return set(operation["responses"].get("200", {}).get("content", ())) == {MEDIA_TYPE}


def _event_schema(name: str, model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization")
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": _inlined(schema, schema)}
    return {"type": "object", "required": ["event", "data"], "properties": {"event": {"const": name}, "data": data}}


def _inlined(part: Any, schema: dict[str, Any]) -> Any:
    """`part` of a schema with its definitions in place of references to them."""
    if isinstance(part, list):
        return [_inlined(each, schema) for each in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        return _inlined(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
    return {name: _inlined(each, schema) for name, each in part.items() if name != "$defs"}
