"""Who may call what: every route needs a key with the right scope, but for the few that are listed as open.

Only in place where keys are set; otherwise everything is open. What is not listed needs `admin`, so a new route is
closed until it is.
"""

from __future__ import annotations

from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.clock import Clock
from elit_serve.errors import ElitError, InvalidKey, MissingScope, RateLimited
from elit_serve.http.faults import fault_of
from elit_serve.server import keys
from elit_serve.server.keys import Key, Keyring
from elit_serve.server.middleware.error_answers import error_answer
from elit_serve.server.middleware.lane import HEALTH_PATHS
from elit_serve.server.middleware.rate_limit import TokenBucket

Need = Literal["nothing", "any key"] | keys.Scope

PATHS: dict[str, Need] = {
    **dict.fromkeys(HEALTH_PATHS, "nothing"),
    "/": "nothing",
    "": "nothing",  # a prefix without the slash behind it, which is redirected to the page
    "/metrics": "metrics",
    "/load": "metrics",
    "/v1/live": "metrics",  # it shows what others ask for
    "/version": "any key",
    "/docs": "any key",
    "/docs/oauth2-redirect": "any key",
    "/openapi.json": "any key",
}
PREFIXES: dict[str, Need] = {"/static/": "nothing", "/static-offline-docs/": "any key", "/v1/": "generate"}


def need_of(path: str) -> Need:
    """What a caller needs for a path."""
    prefix = next((prefix for prefix in PREFIXES if path.startswith(prefix)), "")
    return PATHS.get(path) or PREFIXES.get(prefix, "admin")


class Auth:
    """Lets through who has a key for it; answers others. Whoever has a valid key has `key_name` and `key_scopes` in the
    request's state, also if it is refused for what it asks: the log then says whose key that was."""

    def __init__(self, app: ASGIApp, *, keyring: Keyring, clock: Clock) -> None:
        self._app = app
        self._keyring = keyring
        self._clock = clock
        self._buckets = {key.name: bucket for key in keyring if (bucket := _bucket(key, clock.now())) is not None}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are none, and none shall come past this
            return
        if scope["type"] == "http" and (need := need_of(scope["path"])) != "nothing":
            try:
                self._admit(scope, need)
            except ElitError as error:
                await error_answer(fault_of(error), scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, need: Need) -> None:
        token = _token(scope)
        key = None if token is None else self._keyring.find(token)
        if key is None:
            raise InvalidKey(was_sent=token is not None)
        scope["state"] |= {"key_name": key.name, "key_scopes": key.scopes}
        if need in keys.SCOPES and not key.allows(need):
            raise MissingScope(need)
        bucket = self._buckets.get(key.name)
        if bucket is not None and scope["method"] == "POST":  # looking and cancelling are free
            wait_s = bucket.wait_s(self._clock.now())
            if wait_s > 0:
                raise RateLimited(key.name, wait_s)


def _bucket(key: Key, now_s: float) -> TokenBucket | None:
    if key.requests_per_minute is None:
        return None
    burst = max(1.0, key.requests_per_minute) if key.burst is None else key.burst
    return TokenBucket(per_minute=key.requests_per_minute, burst=burst, now_s=now_s)


def _token(scope: Scope) -> bytes | None:
    """What stands behind `Bearer`, or None."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, token = value.strip().partition(b" ")
            return token.strip() if kind.lower() == b"bearer" and token.strip() else None
    return None
