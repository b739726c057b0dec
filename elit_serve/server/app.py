"""The HTTP application around one pipeline, and the worker's life."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import CapacityLimiter
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool

import elit_serve
from elit_serve.catalogue import ModelQuality
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.errors import EngineStopped
from elit_serve.http import groups
from elit_serve.plans.levels import Budgets
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, FixedPolicy, RequestScheduler
from elit_serve.scheduler.quality import placeholder_quality
from elit_serve.server import openapi_document
from elit_serve.server.guest import Guest, GuestPort, OpenGuest
from elit_serve.server.keys import read_keyring
from elit_serve.server.middleware import error_answers, stack
from elit_serve.server.middleware.lane import Lane
from elit_serve.server.middleware.shares import FairShares
from elit_serve.server.model_routes import router as model_router
from elit_serve.server.openai.routes import router as openai_router
from elit_serve.server.page.page import page_router
from elit_serve.server.routes import router
from elit_serve.server.service import Service
from elit_serve.server.settings import Settings
from elit_serve.server.watching.arrival_log import ArrivalLog
from elit_serve.server.watching.live import LiveFeed, load_of
from elit_serve.server.watching.live import router as live_router
from elit_serve.server.watching.loop_lag import loop_lag_measured
from elit_serve.server.watching.metrics import Metrics
from elit_serve.server.watching.snapshots import Snapshots

if TYPE_CHECKING:
    from elit_serve.server.watching.tracing import Tracing

DESCRIPTION = """One checkpoint, every latency: say what a picture may cost (`budget`), or when it must be there
(`latency_ms`), and the model runs on as many of its latent tokens as that and the other requests allow."""

STARTED_SLOTS = 256  # beside those that wait: more pictures than a device runs at a time


def num_slots(settings: Settings) -> int:
    """Pictures that an executor must have room for."""
    return settings.max_queue + STARTED_SLOTS


def create_app(
    pipeline: Pipeline,
    executor: Executor,
    settings: Settings,
    *,
    cost: CostTable,
    guests: Sequence[Guest] = (),
    clock: Clock | None = None,
) -> FastAPI:
    """The application with its guests; the worker runs from its start-up to its shutdown."""
    clock = clock or MonotonicClock()
    keyring = read_keyring(settings)
    routers = (router, model_router, openai_router, *(guest.router for guest in guests), live_router, page_router())
    all_routes = [route for routes in routers for route in routes.routes if isinstance(route, APIRoute)]
    paths = [route.path for route in all_routes]
    metrics = Metrics(budgets=pipeline.budgets, routes=paths)
    cost = replace(cost, overhead_ms=cost.overhead_ms + settings.response_ms)
    quality = pipeline.quality
    scheduler = open_scheduler(settings, cost, quality)
    worker = Worker(pipeline, executor, scheduler, clock=clock, observer=metrics)
    shape = pipeline.config.default_shape.name
    open_plans = OpenPlans.of(quality, cost, shape) if quality is not None and settings.policy == "elastic" else None
    model = {"model": pipeline.config.name, "hash": pipeline.model_hash, "dtype": pipeline.precision}
    model |= {"device": str(pipeline.device), "version": elit_serve.__version__}
    metrics.watch(worker, queue_limit=settings.max_queue, model=model)
    arrival_log = None
    if settings.arrival_log is not None:
        arrival_log = ArrivalLog(Path(settings.arrival_log), max_bytes=settings.arrival_log_bytes, clock=clock)
    tracing = open_tracing(settings, clock, pipeline.budgets)

    app: FastAPI = FastAPIOffline(
        title="elit-serve",
        description=DESCRIPTION,
        version=elit_serve.__version__,
        openapi_tags=groups.TAGS,
        lifespan=running,
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # otherwise the page asks an outside host
    )
    app.state.service = Service(
        pipeline=pipeline,
        settings=settings,
        cost=cost,
        open_plans=open_plans,
        worker=worker,
        metrics=metrics,
        shares=None if keyring is None else FairShares(keyring.shares, places=settings.max_queue),
        arrival_log=arrival_log,
        tracing=tracing,
        clock=clock,
    )
    app.state.parsing = CapacityLimiter(1)  # of large bodies, one at a time
    app.state.guests = [_opened(guest, app, metrics) for guest in guests]
    app.state.live_feed = LiveFeed(lambda: load_of(app.state.service))
    app.state.load = Snapshots(lambda: load_of(app.state.service).model_dump_json())
    app.state.rendered_metrics = Snapshots(metrics.render)
    app.state.lane = Lane(lambda: worker.num_waiting + worker.num_running > 0)
    for routes in routers:
        app.include_router(routes)
    error_answers.install(app, all_routes)
    openapi_document.complete(app, has_keys=keyring is not None)
    stack.add_all(
        app,
        settings,
        worker=worker,
        metrics=metrics,
        routes=paths,
        keyring=keyring,
        tracing=tracing,
        lane=app.state.lane,
        clock=clock,
    )
    return app


def _opened(guest: Guest, app: FastAPI, metrics: Metrics) -> OpenGuest:
    service: Service = app.state.service
    opened = guest.open(GuestPort(service), service.settings, metrics.registry)
    setattr(app.state, guest.name, opened)
    return opened


def stop_guests(app: FastAPI) -> None:
    """What they have is written down, once the engine takes no more work."""
    for guest in app.state.guests:
        guest.stop()


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[None]:
    """Starts what works beside the requests, and stops it when no request can come any more."""
    service: Service = app.state.service
    guests: list[OpenGuest] = app.state.guests
    worker, arrival_log, tracing = service.worker, service.arrival_log, service.tracing
    if arrival_log is not None:
        arrival_log.start()
    if tracing is not None:
        tracing.start()
    worker.start()
    try:
        await run_in_threadpool(worker.wait_until_ready)
        if not worker.is_alive:
            raise EngineStopped("the engine died while it warmed up")
        for guest in guests:
            guest.start()
        async with loop_lag_measured(service.metrics.loop_lag.observe, service.clock):
            yield
    finally:
        await run_in_threadpool(worker.stop)
        await run_in_threadpool(stop_guests, app)
        for guest in guests:
            await run_in_threadpool(guest.close)
        if arrival_log is not None:
            await run_in_threadpool(arrival_log.stop)
        if tracing is not None:
            await run_in_threadpool(tracing.stop)


def open_tracing(settings: Settings, clock: Clock, budgets: Budgets) -> Tracing | None:
    """None unless it is asked for. Raises `MissingPackage` where the extra that it needs is not installed."""
    if settings.otlp_endpoint is None:
        return None
    from elit_serve.server.watching.tracing import Tracing

    return Tracing(settings.otlp_endpoint, clock=clock, budgets=budgets)


def open_scheduler(settings: Settings, cost: CostTable, quality: ModelQuality | None) -> RequestScheduler:
    """The scheduler that the settings ask for; without measured quality it works with a stated guess."""
    policy: ElasticPolicy | FixedPolicy
    if settings.policy == "elastic":
        table = placeholder_quality(cost.levels) if quality is None else quality.table
        policy = ElasticPolicy(table, ElasticSettings(max_waiting=settings.max_queue))
    else:
        policy = FixedPolicy(max_waiting=settings.max_queue)
    scheduler = RequestScheduler(cost, policy)
    if settings.max_batch is not None:
        scheduler.limit_batch(settings.max_batch)
    return scheduler
