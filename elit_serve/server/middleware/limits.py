"""Bounds on request bodies, before anything looks into them, and on how many requests are under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.errors import Overloaded
from elit_serve.http.faults import KINDS, Fault
from elit_serve.server.lane import Kind, kind_of
from elit_serve.server.middleware.error_answers import asked_of, error_answer

DRAIN_BYTES = 16 << 20  # of a refused body that is read and thrown away, so that its sender reads the answer
DRAIN_SECONDS = 2.0


class RequestLimits:
    """Answers 413 to a body over `max_body_bytes`, whether its length is announced or found out by counting, and 503
    to what is more than `max_requests` at a time: of those for pictures, of scrapes of metrics, and of all others, so
    that none of these shuts out another. Health is always answered.

    A request takes a place from its head on, for what has come of its body takes memory. Where all places are taken,
    the one that has been sending for longest gives its place up: who sends slowly, or never, shuts nobody out. A stream
    leaves its place when it begins (`leave_place` in the state), for streams have bounds of their own.
    """

    def __init__(self, app: ASGIApp, *, max_requests: int, max_body_bytes: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._max_body_bytes = max_body_bytes
        self._of_pictures, self._of_metrics, self._of_others = (_Places(max_requests) for _ in range(3))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = None if scope["type"] != "http" else kind_of(asked_of(scope).work)
        if scope["type"] != "http" or kind is Kind.HEALTH:
            await self._app(scope, receive, send)
            return
        places = {None: self._of_pictures, Kind.METRICS: self._of_metrics}.get(kind, self._of_others)
        place = places.take()
        if place is None:
            detail = f"{self._max_requests} requests are under way, which is the limit"
            await error_answer(_too_many(detail), scope)(scope, receive, send)
            return
        scope["state"]["leave_place"] = lambda: places.leave(place)
        try:
            await self._run(places, place, scope, receive, send)
        finally:
            places.leave(place)

    async def _run(self, places: _Places, place: object, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with places.sending(place):
                body = await _read(scope, receive, self._max_body_bytes)
        except TimeoutError:
            detail = f"this request was still being sent when more than {self._max_requests} came, which is the limit"
            await error_answer(_too_many(detail, close=True), scope)(scope, receive, send)
        except _TooLarge:
            detail = f"the body is over {self._max_body_bytes} bytes, which is the limit"
            fault = Fault(status=413, detail=detail, headers={"Connection": "close"})
            await error_answer(fault, scope)(scope, receive, send)
        else:
            if body is not None:
                await self._app(scope, replay(body, receive), send)


class _Places:
    """Who has one of so many places."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken: set[object] = set()
        self._sending: dict[object, asyncio.Timeout] = {}  # whose bodies are not there whole, the oldest first

    def take(self) -> object | None:
        """A place, or None where there is none, and nobody who could make room."""
        if len(self._taken) >= self._most and not self._make_room():
            return None
        place = object()
        self._taken.add(place)
        return place

    def leave(self, place: object) -> None:
        """Again does nothing."""
        self._taken.discard(place)

    @asynccontextmanager
    async def sending(self, place: object) -> AsyncIterator[None]:
        """While a body is read. Raises `TimeoutError` where its sender has to make room."""
        async with asyncio.timeout(None) as patience:
            self._sending[place] = patience
            try:
                yield
            finally:
                self._sending.pop(place, None)

    def _make_room(self) -> bool:
        """Ends the request whose body has been on its way for longest; False if all are there whole."""
        oldest = next(iter(self._sending), None)
        if oldest is None:
            return False
        self._taken.discard(oldest)
        self._sending.pop(oldest).reschedule(asyncio.get_running_loop().time())
        return True


class _TooLarge(Exception):
    """A body over the limit."""


def _too_many(detail: str, *, close: bool = False) -> Fault:
    kind = KINDS[Overloaded]
    return Fault(
        status=kind.status,
        name=kind.name,
        title=kind.title,
        reason="too_many_requests",
        detail=detail,
        headers={"Retry-After": "1", **({"Connection": "close"} if close else {})},
    )


async def _read(scope: Scope, receive: Receive, max_bytes: int) -> bytes | None:
    """The whole body; None if its sender left before. Raises `_TooLarge` where it is over `max_bytes`."""
    headers = dict(scope["headers"])
    announced = headers.get(b"content-length", b"")
    if announced.isdigit() and int(announced) > max_bytes:
        if b"expect" not in headers:  # one that waits for "100 Continue" has sent nothing yet
            await _drain(receive)
        raise _TooLarge
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if len(body) > max_bytes:
            if message.get("more_body", False):
                await _drain(receive)
            raise _TooLarge
        if not message.get("more_body", False):
            return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the whole body first, then whatever comes next."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


async def _drain(receive: Receive) -> None:
    """Reads on for a while: a sender that is cut off in the middle often never sees the answer."""
    left = DRAIN_BYTES
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
