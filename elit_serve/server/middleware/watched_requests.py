"""What is told of every request to those who watch: it is counted and timed, and has a span of a trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Receive, Scope, Send

from elit_serve.clock import Clock
from elit_serve.server.answer_status import CLIENT_GONE, AnswerStatus
from elit_serve.server.watching.metrics import OTHER_ROUTE, Metrics

if TYPE_CHECKING:
    from elit_serve.server.watching.tracing import Tracing

PREFIX = "/v1/"  # health, metrics and the page are looked at too often to be traced


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


class CountedRequests:
    """Counts and times every HTTP request; routes that do not exist are counted together as `other`."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, routes: Sequence[str], clock: Clock) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_s = self._clock.now()
        status = AnswerStatus()
        try:
            await status.of(self._app, scope, receive, send)
        finally:
            path = getattr(scope.get("route"), "path", scope["path"])  # as a template, if it has parameters
            route = path if path in self._routes else OTHER_ROUTE
            self._metrics.requests.labels(route, outcome_of(status.value)).inc()
            self._metrics.seconds.labels(route).observe(self._clock.now() - started_s)


def outcome_of(status: int) -> str:
    """A status as one of six words."""
    if status == CLIENT_GONE:
        return "cancelled"
    if status in (429, 503):
        return "refused"
    if status == 504:
        return "expired"
    if status >= 500:
        return "failed"
    return "invalid" if status >= 400 else "ok"
