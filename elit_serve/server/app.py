"""The HTTP application around one pipeline: routes, and the worker's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
from elit_serve.engine.jobs import Job, Outcome, alone_ms, weak_caps
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.errors import ElitError, EngineStopped
from elit_serve.measurements import Quality
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, FixedPolicy, RequestScheduler
from elit_serve.scheduler.placeholder_quality import placeholder_quality
from elit_serve.server import problems
from elit_serve.server.arrival_log import ArrivalLog
from elit_serve.server.generation import (
    answer,
    bare_answer,
    form_of,
    image_quality,
    job_of,
    open_plans_of,
    quality_at,
    usable_levels,
)
from elit_serve.server.limits import BodyLimit
from elit_serve.server.metrics import CLIENT_GONE, Metrics, MetricsMiddleware
from elit_serve.server.negotiation import media_type_of
from elit_serve.server.schemas import (
    GenerateRequest,
    GenerateResponse,
    Health,
    LevelInfo,
    ModelInfo,
    ModelList,
    Problem,
    Ready,
)
from elit_serve.server.settings import Settings

DESCRIPTION = """One checkpoint, every latency: say what a picture may cost (`budget`), or when it must be there
(`latency_ms`), and the model runs on as many of its latent tokens as that and the other requests allow."""

STARTED_SLOTS = 256  # beside those that wait: more pictures than a device runs at a time


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes share. open_plans: for requests that leave it open how they are made; None without measurements,
    and under the fixed policy."""

    pipeline: Pipeline
    settings: Settings
    cost: CostTable
    open_plans: OpenPlans | None
    worker: Worker
    metrics: Metrics
    arrival_log: ArrivalLog | None
    clock: Clock


def num_slots(settings: Settings) -> int:
    """Pictures that an executor must have room for."""
    return settings.max_queue + STARTED_SLOTS


def create_app(
    pipeline: Pipeline, executor: Executor, settings: Settings, *, cost: CostTable, clock: Clock | None = None
) -> FastAPI:
    """The application; the worker runs from its start-up to its shutdown."""
    clock = clock or MonotonicClock()
    routes = [route.path for route in router.routes if isinstance(route, APIRoute)]
    metrics = Metrics(
        levels=pipeline.config.levels,
        latents_per_group=pipeline.config.spec.latents_per_group,
        routes=routes,
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

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if arrival_log is not None:
            arrival_log.start()
        worker.start()
        try:
            await run_in_threadpool(worker.wait_until_ready)
            if not worker.is_alive:
                raise EngineStopped("the engine died while it warmed up")
            yield
        finally:
            await run_in_threadpool(worker.stop)
            if arrival_log is not None:
                await run_in_threadpool(arrival_log.stop)

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
        arrival_log=arrival_log,
        clock=clock,
    )
    app.include_router(router)
    problems.install(app)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(MetricsMiddleware, metrics=metrics, routes=routes, clock=clock)
    return app


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
    pipeline = service.pipeline
    arrived_s = service.clock.now()
    form = form_of(request.headers.get("accept"), body, pipeline)
    job = await run_in_threadpool(  # drawing noise takes a while
        job_of, body, form, pipeline, service.cost, service.settings, arrived_s=arrived_s
    )
    if service.arrival_log is not None:
        service.arrival_log.record(body, job, pipeline.config.spec.latents_per_group)
    open_plans = open_plans_of(body, service.open_plans, service.settings)
    outcome = await _outcome(request, service, job, open_plans)
    if outcome is None:
        return Response(status_code=CLIENT_GONE)
    total_ms = 1000 * (service.clock.now() - arrived_s)
    facts = answer(body, outcome, form, pipeline=pipeline, total_ms=total_ms)
    if form.is_bare:
        return bare_answer(facts, outcome.images[0].file)
    return Response(await run_in_threadpool(facts.model_dump_json), media_type="application/json")


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
            quality=quality_at(service.pipeline, plan, level),
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


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
def metrics(request: Request) -> Response:  # on a thread: writing it takes 7 ms
    service: Service = request.app.state.service
    return Response(service.metrics.render(), headers={"Content-Type": service.metrics.content_type})


def _living_worker(request: Request) -> Worker:
    worker: Worker = request.app.state.service.worker
    if not worker.is_alive:
        raise EngineStopped("the engine is not running")
    return worker


async def _outcome(request: Request, service: Service, job: Job, open_plans: OpenPlans | None) -> Outcome | None:
    """Runs a job; None, with the job given up, when its caller has left. Counts what becomes of it."""
    try:
        future = service.worker.submit(job, open_plans)
    except ElitError as error:
        service.metrics.refused(error)
        raise
    try:
        outcome = await _unless_disconnected(request, future)
    except ElitError as error:
        service.metrics.ended(error)
        raise
    if outcome is None:
        service.metrics.generations.labels("cancelled").inc()
    else:
        qualities = [image_quality(image, outcome.job, service.pipeline) for image in outcome.images]
        service.metrics.done(outcome, qualities)
    return outcome


async def _unless_disconnected(request: Request, future: Future[Outcome]) -> Outcome | None:
    waiting = asyncio.wrap_future(future)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {waiting, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()  # and `future` with it, which gives the job up
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
