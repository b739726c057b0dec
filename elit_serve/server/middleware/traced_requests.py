"""A span for every request to /v1/; what else there is, health and metrics and the page, is looked at too often."""

from __future__ import annotations

from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.server.middleware.answer_status import AnswerStatus

if TYPE_CHECKING:
    from elit_serve.server.watching.tracing import Tracing

PREFIX = "/v1/"


class TracedRequests:
    """Begins a span before anything looks at a request, and ends it when the answer is out."""

    def __init__(self, app: ASGIApp, *, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(PREFIX):
            await self._app(scope, receive, send)
            return
        span, begun = self._tracing.begin_request(scope)
        status = AnswerStatus()
        try:
            await status.of(self._app, scope, receive, send)
        finally:
            self._tracing.end_request(span, begun, scope, status.value)
