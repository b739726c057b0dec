"""Headers of every answer: those that keep browsers from doing with it what it is not for, and, when the server leaves,
the one that sends callers elsewhere."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.server.engines import Engines
from elit_serve.server.middleware.error_answers import asked_of

POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
# Swagger UI is started by a script inside its page, and writes styles into it; it shows nothing that callers have sent
DOCS_POLICY = f"{POLICY}; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"

COMMON = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
HEADERS = (*COMMON, (b"content-security-policy", POLICY.encode()))
DOCS_HEADERS = (*COMMON, (b"content-security-policy", DOCS_POLICY.encode()))


class SecurityHeaders:
    """Adds them to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = DOCS_HEADERS if asked_of(scope).has_scripts else HEADERS

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *headers]
            await send(message)

        await self._app(scope, receive, with_headers)


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
