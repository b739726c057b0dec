"""The HTTP application around one pipeline: routes, and the worker's life."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import elit_serve
from elit_serve.budget import budget_of_level
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.encoding import ANSWER_FORMATS
from elit_serve.engine.executor import Executor
from elit_serve.engine.jobs import alone_ms, weak_caps
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.errors import EngineStopped
from elit_serve.measurements import Quality
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, FixedPolicy, RequestScheduler
from elit_serve.scheduler.placeholder_quality import placeholder_quality
from elit_serve.server import error_answers, middlewares, openapi_document, problems
from elit_serve.server.arrival_log import ArrivalLog
from elit_serve.server.auth import owner_of
from elit_serve.server.generation import bare_answer, form_of, job_of, open_plans_of, quality_of, usable_levels
from elit_serve.server.jobs.desk import JobDesk
from elit_serve.server.jobs.routes import router as jobs_router
from elit_serve.server.keys import read_keyring
from elit_serve.server.live import LiveFeed, load_of
from elit_serve.server.live import router as live_router
from elit_serve.server.loop_lag import loop_lag_measured
from elit_serve.server.metrics import CLIENT_GONE, Metrics
from elit_serve.server.negotiation import media_type_of
from elit_serve.server.openai_routes import router as openai_router
from elit_serve.server.page import page_router
from elit_serve.server.planning import plan_answer
from elit_serve.server.schemas import (
    GenerateRequest,
    GenerateResponse,
    Health,
    LevelInfo,
    ModelInfo,
    ModelList,
    PlanResponse,
    Problem,
    Ready,
    Version,
)
from elit_serve.server.service import Service, answer_to, take
from elit_serve.server.settings import Settings
from elit_serve.server.shares import FairShares

if TYPE_CHECKING:
    from elit_serve.server.tracing import Tracing

DESCRIPTION = """One checkpoint, every latency: say what a picture may cost (`budget`), or when it must be there
(`latency_ms`), and the model runs on as many of its latent tokens as that and the other requests allow."""

STARTED_SLOTS = 256  # beside those that wait: more pictures than a device runs at a time


def num_slots(settings: Settings) -> int:
    """Pictures that an executor must have room for."""
    return settings.max_queue + STARTED_SLOTS


def create_app(
    pipeline: Pipeline, executor: Executor, settings: Settings, *, cost: CostTable, clock: Clock | None = None
) -> FastAPI:
    """The application; the worker runs from its start-up to its shutdown."""
    clock = clock or MonotonicClock()
    keyring = read_keyring(settings)
    routers = (router, openai_router, jobs_router, live_router, page_router())
    all_routes = [route for routes in routers for route in routes.routes if isinstance(route, APIRoute)]
    paths = [route.path for route in all_routes]
    metrics = Metrics(
        levels=pipeline.config.levels, latents_per_group=pipeline.config.spec.latents_per_group, routes=paths
    )
    cost = replace(cost, overhead_ms=cost.overhead_ms + settings.response_ms)
    quality = pipeline.quality
    scheduler = open_scheduler(settings, cost, quality)
    worker = Worker(pipeline, executor, scheduler, clock=clock, observer=metrics)
    open_plans = OpenPlans.of(quality, cost) if quality is not None and settings.policy == "elastic" else None
    model = {"model": pipeline.config.name, "hash": pipeline.model_hash, "dtype": pipeline.precision}
    model |= {"device": str(pipeline.device), "version": elit_serve.__version__}
    metrics.watch(worker, queue_limit=settings.max_queue, model=model)
    arrival_log = None
    if settings.arrival_log is not None:
        arrival_log = ArrivalLog(Path(settings.arrival_log), max_bytes=settings.arrival_log_bytes, clock=clock)
    tracing = open_tracing(settings, clock, pipeline.config.spec.latents_per_group)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if arrival_log is not None:
            arrival_log.start()
        if tracing is not None:
            tracing.start()
        worker.start()
        try:
            await run_in_threadpool(worker.wait_until_ready)
            if not worker.is_alive:
                raise EngineStopped("the engine died while it warmed up")
            jobs.start()
            async with loop_lag_measured(metrics.loop_lag.observe, clock):
                yield
        finally:
            await run_in_threadpool(worker.stop)
            await run_in_threadpool(jobs.stop)
            await run_in_threadpool(jobs.close)
            if arrival_log is not None:
                await run_in_threadpool(arrival_log.stop)
            if tracing is not None:
                await run_in_threadpool(tracing.stop)

    app: FastAPI = FastAPIOffline(
        title="elit-serve",
        description=DESCRIPTION,
        version=elit_serve.__version__,
        lifespan=lifespan,
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
    jobs = app.state.jobs = JobDesk(app.state.service)
    app.state.live_feed = LiveFeed(lambda: load_of(app.state.service))
    for routes in routers:
        app.include_router(routes)
    error_answers.install(app, all_routes)
    openapi_document.complete(app, has_keys=keyring is not None)
    middlewares.add_all(app, settings, metrics=metrics, routes=paths, keyring=keyring, tracing=tracing, clock=clock)
    return app


def open_tracing(settings: Settings, clock: Clock, latents_per_group: int) -> Tracing | None:
    """None unless it is asked for. Raises `MissingPackage` where the extra that it needs is not installed."""
    if settings.otlp_endpoint is None:
        return None
    from elit_serve.server.tracing import Tracing

    return Tracing(settings.otlp_endpoint, clock=clock, latents_per_group=latents_per_group)


def open_scheduler(settings: Settings, cost: CostTable, quality: Quality | None) -> RequestScheduler:
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


router = APIRouter()

_PROBLEM: dict[str, Any] = {"model": Problem, "content": {problems.MEDIA_TYPE: {}}}
_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/v1/generate",
    summary="Generate pictures of a class",
    responses={
        200: {
            "model": GenerateResponse,
            "description": "JSON, or by `Accept` the bare file with the same facts in `X-Elit-` headers.",
            "content": {media_type_of(name): _FILE for name in ANSWER_FORMATS},
        },
        400: {**_PROBLEM, "description": "The body is not JSON."},
        406: {**_PROBLEM, "description": "`Accept` names nothing that this model can answer with."},
        413: {**_PROBLEM, "description": "The body is too large."},
        422: {**_PROBLEM, "description": "A field is not valid, or the target cannot be met; see `min_latency_ms`."},
        500: {**_PROBLEM, "description": "The picture could not be generated."},
        503: {**_PROBLEM, "description": "Others are in the way, or the engine is down: `reason`, `Retry-After`."},
        504: {**_PROBLEM, "description": "The request was taken, but its target has passed."},
    },
)
async def generate(request: Request, body: GenerateRequest) -> Response:
    service: Service = request.app.state.service
    form = form_of(request.headers.get("accept"), body, service.pipeline)
    facts = await answer_to(request, service, await take(service, body, form, owner=owner_of(request)))
    if facts is None:
        return Response(status_code=CLIENT_GONE)
    if form.is_bare:
        return bare_answer(facts)
    return Response(await run_in_threadpool(facts.model_dump_json), media_type="application/json")


@router.post(
    "/v1/plan",
    summary="What would become of a request: a dry run of /v1/generate that takes nothing and promises nothing",
    responses={
        400: {**_PROBLEM, "description": "The body is not JSON."},
        413: {**_PROBLEM, "description": "The body is too large."},
        422: {**_PROBLEM, "description": "A field is not valid. A target that cannot be met is an answer: `refusal`."},
        503: {**_PROBLEM, "description": "The engine is down, or has no room for a single picture more."},
    },
)
def plan(request: Request, body: GenerateRequest) -> PlanResponse:
    service: Service = request.app.state.service
    pipeline, cost, settings = service.pipeline, service.cost, service.settings
    form = form_of(None, body, pipeline)
    job = job_of(body, form, pipeline, cost, settings, arrived_s=service.clock.now())
    open_plans = open_plans_of(body, service.open_plans, settings)
    foresight = service.worker.foresee(job, open_plans)
    return plan_answer(body, foresight, open_plans, pipeline, cost)


@router.get("/v1/models", summary="The model, its classes and what its levels cost here")
def models(request: Request) -> ModelList:
    service: Service = request.app.state.service
    config = service.pipeline.config
    plan = service.pipeline.plan()
    caps = weak_caps(plan.guidance, plan.num_steps, plan.time_shift, max(config.levels))
    costs_ms = {
        level: alone_ms(service.cost, (level,) * plan.num_steps, caps) for level in usable_levels(plan, config.levels)
    }
    levels = [
        LevelInfo(
            level=level,
            budget=budget_of_level(level, config.spec.latents_per_group),
            latency_ms=costs_ms.get(level),
            quality=quality_of(service.pipeline, plan.at_level(level)),
        )
        for level in config.levels
    ]
    info = ModelInfo(
        id=config.name,
        hash=service.pipeline.model_hash,
        classes=list(config.classes),
        levels=levels,
        sample_shape=config.spec.sample_shape,
        sampling=config.sampling.model_dump(mode="json"),
        device=str(service.pipeline.device),
        dtype=service.pipeline.precision,
    )
    return ModelList(data=[info])


@router.get("/health", summary="Whether the engine runs", responses={503: _PROBLEM})
async def health(request: Request) -> Health:
    worker = _living_worker(request)
    return Health(
        status="draining" if worker.is_draining else "ok",
        model=request.app.state.service.pipeline.config.name,
        queue_length=worker.num_waiting,
        running=worker.num_running,
    )


@router.get("/liveness", summary="Whether this process should live on", responses={503: _PROBLEM})
@router.get("/v2/health/live", include_in_schema=False)
async def liveness(request: Request) -> Ready:
    _living_worker(request)
    return Ready()


@router.get("/readiness", summary="Whether to send requests here: not while draining", responses={503: _PROBLEM})
@router.get("/v2/health/ready", include_in_schema=False)
async def readiness(request: Request) -> Ready:
    if not _living_worker(request).is_ready:
        raise EngineStopped("the engine takes no more work")
    return Ready()


@router.get("/version", summary="The server's version")
async def version() -> Version:
    return Version(version=elit_serve.__version__)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(request: Request) -> Response:  # on a thread: writing it takes 7 ms
    service: Service = request.app.state.service
    return Response(service.metrics.render(), headers={"Content-Type": service.metrics.content_type})


def _living_worker(request: Request) -> Worker:
    worker: Worker = request.app.state.service.worker
    if not worker.is_alive:
        raise EngineStopped("the engine is not running")
    return worker
