"""Under which path the server is reached: a proxy may show it as https://example.org/elit.

Between `FarSide` and `NearSide`, where the other middlewares stand, `path` is what the routes are called, whatever the
prefix, so that nobody who decides by the path (keys, limits, headers) need think of it. The application itself sees
what ASGI says, `root_path` and a `path` that begins with it, from which FastAPI makes links.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from elit_serve.server.settings import is_prefix

HEADER = b"x-forwarded-prefix"
THIS_MACHINE = ("127.0.0.1", "::1")


def route_path(scope: Scope) -> str:
    """What the routes are called, on either side."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("app_root_path", scope.get("root_path", "")))


class FarSide:
    """Believes what trusted proxies tell of a request, that is its caller's address and scheme and the prefix, and
    takes the prefix off where the proxy has not. Stands before everything else.

    prefix: that of requests which come with none of their own.
    """

    def __init__(self, app: ASGIApp, *, prefix: str, trusted_proxies: Sequence[str]) -> None:
        trusted = "*" if "*" in trusted_proxies else list(trusted_proxies)
        self._proxy_headers = ProxyHeadersMiddleware(app, trusted)  # type: ignore[arg-type]  # uvicorn's own ASGI types
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            prefix = self._prefix_of(scope)
            scope.setdefault("state", {})["prefix"] = prefix
            if prefix and f"{scope['path']}/".startswith(f"{prefix}/"):
                scope["path"] = scope["path"].removeprefix(prefix)
        await self._proxy_headers(scope, receive, send)  # type: ignore[arg-type]

    def _prefix_of(self, scope: Scope) -> str:
        client = scope.get("client")
        told = [str(value, "latin-1").rstrip("/") for name, value in scope["headers"] if name == HEADER]
        is_trusted = client is not None and client[0] in self._proxy_headers.trusted_hosts
        return told[0] if is_trusted and len(told) == 1 and is_prefix(told[0]) else self._prefix


class NearSide:
    """Gives the application its path with the prefix. Its redirects keep to this server: Starlette makes whole URLs of
    the `Host` header, which behind a proxy may be an address of the inside."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_local(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] == 307:
                message["headers"] = [
                    (name, _local(value) if name == b"location" else value) for name, value in message["headers"]
                ]
            await send(message)

        path, prefix = scope["path"], scope["state"]["prefix"]
        scope.update(path=prefix + path, root_path=prefix)
        try:
            await self._app(scope, receive, send_local)
        finally:
            scope.update(path=path, root_path="")
            scope.pop("app_root_path", None)  # of a mounted application


def _local(location: bytes) -> bytes:
    """The path and the query of a URL."""
    parts = urlsplit(location)
    return parts.path + (b"?" + parts.query if parts.query else b"")
