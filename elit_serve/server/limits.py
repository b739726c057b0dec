"""Bounds on request bodies, before anything reads them, and on how many requests are under way."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.errors import Overloaded
from elit_serve.server.error_answers import error_answer
from elit_serve.server.faults import KINDS, Fault

DRAIN_BYTES = 16 << 20  # of a refused body that is read and thrown away, so that its sender reads the answer
DRAIN_SECONDS = 2.0
HEALTH_PATHS = frozenset({"/health", "/liveness", "/readiness", "/v2/health/live", "/v2/health/ready"})


class RequestLimit:
    """Answers 503 to what is more than `max_requests` at a time; health is always answered."""

    def __init__(self, app: ASGIApp, *, max_requests: int) -> None:
        self._app = app
        self._max_requests = max_requests
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in HEALTH_PATHS:
            await self._app(scope, receive, send)
        elif self._under_way >= self._max_requests:
            await self._refuse(scope, receive, send)
        else:
            self._under_way += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._under_way -= 1

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = KINDS[Overloaded]
        fault = Fault(
            status=kind.status,
            name=kind.name,
            title=kind.title,
            reason="too_many_requests",
            detail=f"{self._max_requests} requests are under way, which is the limit",
            headers={"Retry-After": "1"},
        )
        await error_answer(fault, scope)(scope, receive, send)


class BodyLimit:
    """Answers 413 to a body over `max_bytes`, whether its length is announced or found out by counting."""

    def __init__(self, app: ASGIApp, *, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._max_bytes:
            if b"expect" not in headers:  # one that waits for "100 Continue" has sent nothing yet
                await _drain(receive)
            await self._refuse(scope, receive, send)
            return
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return  # the caller left before it had sent everything
            body += message.get("body", b"")
            if len(body) > self._max_bytes:
                if message.get("more_body", False):
                    await _drain(receive)
                await self._refuse(scope, receive, send)
                return
            if not message.get("more_body", False):
                break
        await self._app(scope, _replay(bytes(body), receive), send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        detail = f"the body is over {self._max_bytes} bytes, which is the limit"
        fault = Fault(status=413, detail=detail, headers={"Connection": "close"})
        await error_answer(fault, scope)(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
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
