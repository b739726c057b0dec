"""What Prometheus sees: one registry for each app."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.clock import Clock

SECONDS_BUCKETS = (
    *(0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.125, 0.15, 0.175, 0.2, 0.225, 0.25, 0.275, 0.3),
    *(0.35, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0),
)
MAX_LEVEL_BUCKETS = 32
CLIENT_GONE = 499  # nginx's number for a caller that did not wait


class Metrics:
    """The metrics of one app."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, *, levels: Sequence[int], queue_length: Callable[[], int]) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "elit_requests_total",
            "HTTP requests by route and outcome (ok, invalid, refused, failed, cancelled).",
            ["route", "outcome"],
            registry=self._registry,
        )
        self.seconds = Histogram(
            "elit_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=self._registry,
        )
        self.level = Histogram(
            "elit_level",
            "Mean level of each picture: latents kept per group.",
            buckets=_thinned(levels),
            registry=self._registry,
        )
        queue = Gauge("elit_queue_length", "Requests that wait for the engine.", registry=self._registry)
        queue.set_function(queue_length)

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class MetricsMiddleware:
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
        status = CLIENT_GONE  # an app that ends without an answer has nobody left to give it to

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        except Exception:
            status = 500
            raise
        finally:
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.requests.labels(route, outcome_of(status)).inc()
            self._metrics.seconds.labels(route).observe(self._clock.now() - started_s)


def outcome_of(status: int) -> str:
    """A status as one of five words."""
    if status == CLIENT_GONE:
        return "cancelled"
    if status == 503:
        return "refused"
    if status >= 500:
        return "failed"
    return "invalid" if status >= 400 else "ok"


def _thinned(levels: Sequence[int]) -> list[float]:
    """At most `MAX_LEVEL_BUCKETS` bucket edges, the largest level among them."""
    stride = -(-len(levels) // MAX_LEVEL_BUCKETS)
    return [float(level) for level in sorted(levels, reverse=True)[::stride]][::-1]
