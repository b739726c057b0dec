"""What stands between a connection and the routes, in order. All plain ASGI: together a few microseconds a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from elit_serve.clock import Clock
from elit_serve.http.access import AccessTable
from elit_serve.http.events import StreamLimits
from elit_serve.server.engines import Engines
from elit_serve.server.keys import Keyring
from elit_serve.server.lane import Lane
from elit_serve.server.middleware.answer_headers import Draining, SecurityHeaders
from elit_serve.server.middleware.auth import Auth
from elit_serve.server.middleware.forwarding import Forwarding
from elit_serve.server.middleware.head_requests import HeadRequests
from elit_serve.server.middleware.limits import RequestLimits
from elit_serve.server.middleware.prefix import THIS_MACHINE, FarSide, NearSide
from elit_serve.server.middleware.request_context import Failures, RequestContext
from elit_serve.server.middleware.turns import AnswerTurns, WorkTurns
from elit_serve.server.middleware.watched_requests import CountedRequests, TracedRequests
from elit_serve.server.settings import Settings
from elit_serve.server.sharing import SharedGuest
from elit_serve.server.watching.metrics import Metrics

if TYPE_CHECKING:
    from elit_serve.server.watching.tracing import Tracing


def add_all(
    app: FastAPI,
    settings: Settings,
    *,
    engines: Engines,
    metrics: Metrics,
    routes: Sequence[str],
    access: AccessTable,
    keyring: Keyring | None,
    tracing: Tracing | None,
    lane: Lane,
    clock: Clock,
    shared: Mapping[str, SharedGuest],
) -> None:
    """From the innermost to the outermost: keys are asked for before a body is read, and what every answer must have
    stands before what may refuse."""
    app.add_middleware(NearSide)
    if shared:
        app.add_middleware(Forwarding, shared=shared)
    app.add_middleware(HeadRequests)
    app.add_middleware(
        StreamLimits,
        max_streams=settings.max_streams,
        max_streams_per_key=settings.max_streams_per_key or max(1, settings.max_streams // 2),
    )
    app.add_middleware(WorkTurns, lane=lane)  # after the body, which may come slowly
    app.add_middleware(
        RequestLimits, max_requests=settings.max_concurrent_requests, max_body_bytes=settings.max_body_bytes
    )
    if keyring is not None:
        app.add_middleware(Auth, keyring=keyring, clock=clock)
    app.add_middleware(Failures)
    if settings.cors_origin:  # before keys, for a browser asks without one whether it may ask
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["*"],
            expose_headers=["*"],
        )
    app.add_middleware(AnswerTurns, lane=lane, max_held=settings.max_concurrent_requests)
    app.add_middleware(CountedRequests, metrics=metrics, routes=routes, clock=clock)
    app.add_middleware(SecurityHeaders)
    if tracing is not None:
        app.add_middleware(TracedRequests, tracing=tracing)
    app.add_middleware(Draining, engines=engines)
    app.add_middleware(RequestContext, access=access, clock=clock)
    app.add_middleware(FarSide, prefix=settings.root_path or "", trusted_proxies=settings.trusted_proxy or THIS_MACHINE)
