"""Callers are sent elsewhere while the server takes no more work."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.server.engines import Engines


class Draining:
    """Closes each connection after its answer while an engine drains or is dead: a proxy or a client that keeps it
    would otherwise go on sending here."""

    def __init__(self, app: ASGIApp, *, engines: Engines) -> None:
        self._app = app
        self._engines = engines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def closing(message: Message) -> None:
            is_leaving = self._engines.are_draining or not self._engines.are_alive
            if message["type"] == "http.response.start" and is_leaving:
                others = [header for header in message["headers"] if header[0] != b"connection"]
                message["headers"] = [*others, (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, closing)
