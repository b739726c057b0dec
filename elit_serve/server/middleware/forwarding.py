"""Requests for what another server of this machine has are sent on to it, and its answers come back as they are."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.errors import StoreUnavailable
from elit_serve.http.faults import fault_of
from elit_serve.server.middleware.error_answers import error_answer
from elit_serve.server.middleware.limits import replay
from elit_serve.server.sharing import SharedGuest

PATIENCE_S = 10.0  # with an owner that has just ended, until another has taken over
PAUSE_S = 0.1
NO_LIMIT = aiohttp.ClientTimeout(total=None)  # a stream of events lasts as long as a job does
AUTOMATIC = ("Accept", "Accept-Encoding", "User-Agent", "Content-Type")  # that the client would add by itself
OF_ASKING = (b"connection", b"keep-alive", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"content-length")
OF_ANSWERING = (b"connection", b"keep-alive", b"transfer-encoding", b"x-request-id", b"date")


class Forwarding:
    """Stands in front of the routes, behind keys and limits: where a request of another server's would be answered.

    shared: what several servers have in turn, by the prefix of its routes.
    """

    def __init__(self, app: ASGIApp, *, shared: Mapping[str, SharedGuest]) -> None:
        self._app = app
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        guest = self._guest_of(scope)
        if guest is None or guest.is_here:
            await self._app(scope, receive, send)
            return
        body = await Request(scope, receive).body()  # bounded, and read already
        try:
            is_answered = await _forward(guest, body, scope, receive, send)
        except StoreUnavailable as error:
            await error_answer(fault_of(error), scope)(scope, receive, send)
            return
        if not is_answered:
            await self._app(scope, replay(body, receive), send)

    def _guest_of(self, scope: Scope) -> SharedGuest | None:
        if scope["type"] != "http":
            return None
        path = f"{scope['path']}/"
        return next((guest for prefix, guest in self._shared.items() if path.startswith(f"{prefix}/")), None)


async def _forward(guest: SharedGuest, body: bytes, scope: Scope, receive: Receive, send: Send) -> bool:
    """False if this server has become the owner. Raises `StoreUnavailable` if there is none for a while, or it ends
    before it has begun to answer."""
    clock = asyncio.get_running_loop().time
    patient_until_s = clock() + PATIENCE_S
    while not guest.is_here:
        exchange = _Exchange(scope, body, send)
        try:
            await _unless_disconnected(exchange.run(str(guest.owner)), receive)
        except aiohttp.ClientConnectorError:  # it has not even been asked
            if clock() > patient_until_s:
                raise StoreUnavailable("the server that had the jobs has ended, and no other has them yet") from None
            await asyncio.sleep(PAUSE_S)
        except aiohttp.ClientError as error:
            if exchange.has_begun:
                raise  # the connection is cut, so that nobody takes half an answer for a whole one
            raise StoreUnavailable("the server that has the jobs ended at this request") from error
        else:
            return True
    return False


class _Exchange:
    """A request asked again in the same words, and the answer."""

    def __init__(self, scope: Scope, body: bytes, send: Send) -> None:
        self._scope = scope
        self._body = body
        self._send = send
        self.has_begun = False

    async def run(self, owner: str) -> None:
        """owner: the socket of who is asked."""
        scope, query = self._scope, self._scope["query_string"].decode("latin-1")
        url = f"http://owner{quote(scope['path'])}{f'?{query}' if query else ''}"
        headers = _without(OF_ASKING, scope["headers"])
        headers.append(("X-Request-Id", scope["state"]["request_id"]))
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(owner),
                timeout=NO_LIMIT,
                auto_decompress=False,
                skip_auto_headers=AUTOMATIC,
            ) as session,
            session.request(
                scope["method"], url, headers=headers, data=self._body or None, allow_redirects=False
            ) as answer,
        ):
            if answer.content_type == "text/event-stream":
                scope["state"]["leave_place"]()  # streams have bounds of their own, where they begin
            raw_headers = [pair for pair in answer.raw_headers if pair[0].lower() not in OF_ANSWERING]
            self.has_begun = True
            await self._send({"type": "http.response.start", "status": answer.status, "headers": raw_headers})
            async for part in answer.content.iter_any():
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
            await self._send({"type": "http.response.body", "body": b""})


def _without(names: tuple[bytes, ...], headers: list[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    unwanted = (*names, b"x-request-id")
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name not in unwanted]


async def _unless_disconnected(exchange: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs it until it has ended, or the caller has left."""
    asking, leaving = asyncio.create_task(exchange), asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({asking, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if asking.done():
            asking.result()
    finally:
        for task in (asking, leaving):
            task.cancel()
        await asyncio.gather(asking, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
