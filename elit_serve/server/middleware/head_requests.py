"""HEAD wherever GET is: the same status and headers, and no body."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Has HEAD answered as GET, and ends it once the headers are out: a stream of events is not even begun."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            scope["method"] = "HEAD"  # what writes the answer must know that no body follows
            await send(message)
            await send({"type": "http.response.body"})
            raise _HeadSent

        scope["method"] = "GET"
        try:
            await self._app(scope, receive, send_head)
        except* _HeadSent:  # in a group where an answer has tasks of its own
            pass
        finally:
            scope["method"] = "HEAD"


class _HeadSent(Exception):
    """There is nothing left to do for a request."""


def with_head(methods: set[str]) -> set[str]:
    """The methods that a path allows, of which its routes name GET only."""
    return methods | {"HEAD"} if "GET" in methods else methods
