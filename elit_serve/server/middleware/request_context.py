"""What is known of a request while it runs: its id, and at its end one line in the log."""

from __future__ import annotations

import logging
import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.clock import Clock
from elit_serve.http.access import AccessTable
from elit_serve.http.faults import Fault
from elit_serve.server.answer_status import CLIENT_GONE
from elit_serve.server.middleware.error_answers import error_answer
from elit_serve.server.watching.logs import REQUEST_ID

access = logging.getLogger("elit_serve.access")
logger = logging.getLogger(__name__)

SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestContext:
    """Gives every request an id: its `X-Request-Id` if that is sane, else a new one, which the answer has too.

    The state has it as `request_id`, what the route declares as `access`, and `key_name`, None unless keys are set;
    `taken`, `job_id` and `fault` come as they become known. Logs method, path, status and time, nothing else.
    """

    def __init__(self, app: ASGIApp, *, access: AccessTable, clock: Clock) -> None:
        self._app = app
        self._access = access
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        state = scope.setdefault("state", {})
        declared = self._access.of(scope["method"], scope["path"])
        state |= {"request_id": request_id, "key_name": None, "access": declared}
        REQUEST_ID.set(request_id)  # each request runs in a task of its own, so nothing has to be put back
        header = (b"x-request-id", request_id.encode())
        started_s = self._clock.now()
        status = CLIENT_GONE

        async def with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._app(scope, receive, with_id)
        finally:
            if access.isEnabledFor(logging.INFO):
                _log(scope, status, 1000 * (self._clock.now() - started_s))


class Failures:
    """Answers what nobody has caught with 500, and logs it; here, so that this answer too has all headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def watch(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception as error:
            logger.exception("a request failed")
            if has_begun:
                raise  # the connection is cut, so that nobody takes half an answer for a whole one
            fault = Fault(status=500, detail=f"the server failed with {type(error).__name__}")
            await error_answer(fault, scope)(scope, receive, send)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return secrets.token_hex(8)


def _log(scope: Scope, status: int, duration_ms: float) -> None:
    method, path, client = scope["method"], scope["path"], scope.get("client")
    fields = {
        "method": method,
        "path": path,
        "status": status,
        "duration_ms": round(duration_ms, 1),
        "client": client[0] if client else None,
        "key": scope["state"]["key_name"],
    }
    access.info("%s %s %d %.1f ms", method, path, status, duration_ms, extra=fields)
