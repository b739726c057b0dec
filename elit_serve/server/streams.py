"""Bounds on streams of server-sent events, which may last for hours: for each key, and in all."""

from __future__ import annotations

from collections import Counter

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.errors import Overloaded, RateLimited
from elit_serve.server.middleware.auth import owner_of

RETRY_S = 5.0  # until the next try: nobody knows when a stream ends


class StreamLimits:
    """Counts streams, which are apart from requests. Without keys there is only the bound in all."""

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


def enter_stream(request: Request) -> None:
    """To be called before the work for a stream begins; it counts until its request ends, whatever becomes of it.

    Raises `RateLimited` where its key has too many, `Overloaded` where there are too many in all.
    """
    request.state.enter_stream(owner_of(request))
