"""Who may call what: every route needs the key that it declares.

Only in place where keys are set; otherwise everything is open. A route that declares nothing needs `admin`, so a new
one is closed until it does.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.clock import Clock
from elit_serve.errors import ElitError, InvalidKey, MissingScope, RateLimited
from elit_serve.http.access import Access
from elit_serve.http.faults import fault_of
from elit_serve.server.fairness import TokenBucket
from elit_serve.server.keys import SCOPES, Key, Keyring
from elit_serve.server.middleware.error_answers import asked_of, error_answer


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
        if scope["type"] == "http" and asked_of(scope).needs != "nothing":
            try:
                self._admit(scope, asked_of(scope))
            except ElitError as error:
                await error_answer(fault_of(error), scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope, declared: Access) -> None:
        token = _token(scope)
        key = None if token is None else self._keyring.find(token)
        if key is None:
            raise InvalidKey(was_sent=token is not None)
        scope["state"] |= {"key_name": key.name, "key_scopes": key.scopes}
        if declared.needs in SCOPES and not key.allows(declared.needs):
            raise MissingScope(declared.needs)
        bucket = self._buckets.get(key.name)
        if bucket is not None and scope["method"] == "POST" and not declared.is_free:  # so are looking and cancelling
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
