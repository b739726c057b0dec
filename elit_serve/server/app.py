"""The HTTP application around its engines, and their life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

import elit_serve
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.errors import EngineStopped
from elit_serve.http import groups
from elit_serve.http.access import Access, AccessTable, Need, declare
from elit_serve.server import openapi_document
from elit_serve.server.engines import Engines, Servable, check_names
from elit_serve.server.fairness import FairShares
from elit_serve.server.guest import Guest, GuestPort, OpenGuest
from elit_serve.server.keys import Keyring, read_keyring
from elit_serve.server.lane import Lane
from elit_serve.server.middleware import error_answers, stack
from elit_serve.server.openai.errors import is_openai
from elit_serve.server.openai.routes import router as openai_router
from elit_serve.server.page.page import page_router
from elit_serve.server.page.thumbnails import Thumbnails
from elit_serve.server.page.thumbnails import router as thumbnail_router
from elit_serve.server.peers import Peers
from elit_serve.server.routes import router
from elit_serve.server.service import Service
from elit_serve.server.settings import Settings
from elit_serve.server.sharing import SharedGuest
from elit_serve.server.watching.arrival_log import ArrivalLog
from elit_serve.server.watching.live import LiveView
from elit_serve.server.watching.live import router as live_router
from elit_serve.server.watching.loop_lag import loop_lag_measured
from elit_serve.server.watching.metrics import Metrics
from elit_serve.server.watching.snapshots import Snapshots

if TYPE_CHECKING:
    from elit_serve.server.watching.tracing import Tracing

DESCRIPTION = """One checkpoint, every latency: say what a picture may cost (`budget`), or when it must be there
(`latency_ms`), and the model runs on as many of its latent tokens as that and the other requests allow."""


def create_app(
    models: Sequence[Servable],
    settings: Settings,
    *,
    guests: Sequence[Guest] = (),
    clock: Clock | None = None,
    shared: Path | None = None,
) -> FastAPI:
    """The application around these models, of which the first is the default, with its guests; its workers run from its
    start-up to its shutdown. Raises `InvalidInput` for two models of one name.

    shared: the socket of this server beside those of others with which it has the guests in turn; None is a server
    that has them alone.
    """
    clock = clock or MonotonicClock()
    keyring = read_keyring(settings)
    routers = (router, openai_router, *(guest.router for guest in guests), live_router, thumbnail_router, page_router())
    all_routes = [route for routes in routers for route in routes.routes if isinstance(route, APIRoute)]
    paths = [route.path for route in all_routes]
    keys = [] if keyring is None else [key.name for key in keyring]
    offered = [model.served for model in models]
    check_names([served.config.name for served in offered])
    metrics = Metrics(models={served.config.name: served for served in offered}, routes=paths, keys=keys)
    engines = open_engines(models, settings, keyring, metrics, clock)
    tracing = open_tracing(settings, clock)

    app = new_app()
    app.state.service = Service(
        engines=engines,
        settings=settings,
        metrics=metrics,
        arrival_log=open_arrival_log(settings, clock),
        tracing=tracing,
        clock=clock,
        peers=None if shared is None else Peers(shared.parent, shared),
    )
    app.state.thumbnails = Thumbnails(app.state.service)
    app.state.parsing = CapacityLimiter(1)  # of large bodies, one at a time
    app.state.guests = [_opened(guest, app, metrics, shared) for guest in guests]
    app.state.live = LiveView(engines, metrics)
    app.state.rendered_metrics = Snapshots(metrics.render)
    app.state.lane = Lane(lambda: engines.num_waiting + engines.num_running > 0)
    app.state.access = access = AccessTable([*app.routes, *all_routes], _unknown)
    for routes in routers:
        app.include_router(routes)
    error_answers.install(app, all_routes)
    openapi_document.complete(app, access, has_keys=keyring is not None)
    stack.add_all(
        app,
        settings,
        engines=engines,
        metrics=metrics,
        routes=paths,
        access=access,
        keyring=keyring,
        tracing=tracing,
        lane=app.state.lane,
        clock=clock,
        shared={
            guest.router.prefix: opened
            for guest, opened in zip(guests, app.state.guests, strict=True)
            if isinstance(opened, SharedGuest)
        },
    )
    return app


def open_engines(
    models: Sequence[Servable], settings: Settings, keyring: Keyring | None, metrics: Metrics, clock: Clock
) -> Engines:
    """An engine for each model, of which the metrics are told."""
    engines = Engines(
        [
            model.open(
                settings,
                shares=None if keyring is None else FairShares(keyring.shares, places=settings.max_queue),
                observer=metrics.of(model.served.config.name),
                clock=clock,
            )
            for model in models
        ]
    )
    metrics.watch(
        {name: engine.worker for name, engine in engines.items() if engine.keeps_account},
        queue_limit=settings.max_queue,
        replica_range=settings.replica_range,
        facts={name: engine.facts for name, engine in engines.items()},
    )
    return engines


def _opened(guest: Guest, app: FastAPI, metrics: Metrics, shared: Path | None) -> OpenGuest:
    """Its routes find it in the state of the app."""
    service: Service = app.state.service
    open_guest = partial(guest.open, GuestPort(service), service.settings, metrics.registry)
    show = partial(setattr, app.state, guest.name)
    if shared is not None:
        return SharedGuest(open_guest, on_open=show, name=guest.name, socket=shared)
    opened = open_guest()
    show(opened)
    return opened


def stop_guests(app: FastAPI) -> None:
    """What they have is written down, once the engine takes no more work."""
    for guest in app.state.guests:
        guest.stop()


def new_app() -> FastAPI:
    """With its documentation and no routes."""
    app: FastAPI = FastAPIOffline(
        title="elit-serve",
        description=DESCRIPTION,
        version=elit_serve.__version__,
        openapi_tags=groups.TAGS,
        lifespan=running,
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # otherwise the page asks an outside host
    )
    declare(app.routes, Access(needs="any key"))
    declare([route for route in app.routes if isinstance(route, APIRoute)], Access(needs="any key", has_scripts=True))
    return app


def _unknown(path: str) -> Access:
    """What holds where there is no route. A prefix without the slash behind it is redirected to the page, and that the
    page has no such file may be known."""
    is_of_page = path == "" or path.startswith("/static/")
    needs: Need = "nothing" if is_of_page else "generate" if path.startswith("/v1/") else "admin"
    return Access(needs=needs, errors="openai" if is_openai(path) else "problem")


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """Starts what works beside the requests, and stops it when no request can come any more."""
    service: Service = app.state.service
    guests: list[OpenGuest] = app.state.guests
    workers = [engine.worker for engine in service.engines.values()]
    arrival_log, tracing = service.arrival_log, service.tracing
    if arrival_log is not None:
        arrival_log.start()
    if tracing is not None:
        tracing.start()
    for worker in workers:
        worker.start()
    try:
        for worker in workers:
            await run_in_threadpool(worker.wait_until_ready)
        if not service.engines.are_alive:
            raise EngineStopped("the engine died while it warmed up")
        for guest in guests:
            guest.start()
        async with loop_lag_measured(service.metrics.loop_lag.observe, service.clock):
            yield
    finally:
        for worker in workers:
            await run_in_threadpool(worker.stop)
        await run_in_threadpool(stop_guests, app)
        for guest in guests:
            await run_in_threadpool(guest.close)
        if arrival_log is not None:
            await run_in_threadpool(arrival_log.stop)
        if tracing is not None:
            await run_in_threadpool(tracing.stop)


def open_arrival_log(settings: Settings, clock: Clock) -> ArrivalLog | None:
    """None unless it is asked for. Raises `InvalidInput` if it cannot be opened."""
    if settings.arrival_log is None:
        return None
    return ArrivalLog(Path(settings.arrival_log), max_bytes=settings.arrival_log_bytes, clock=clock)


def open_tracing(settings: Settings, clock: Clock) -> Tracing | None:
    """None unless it is asked for. Raises `MissingPackage` where the extra that it needs is not installed."""
    if settings.otlp_endpoint is None:
        return None
    from elit_serve.server.watching.tracing import Tracing

    return Tracing(settings.otlp_endpoint, clock=clock)
