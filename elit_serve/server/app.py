"""The HTTP application around one pipeline: routes, and the worker's life."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import elit_serve
from elit_serve.budget import budget_of_level
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.predict import Predictor
from elit_serve.engine.worker import Job, Outcome, Worker
from elit_serve.errors import EngineStopped, GenerationFailed
from elit_serve.pictures import OUTPUT_FORMATS
from elit_serve.scheduler import CostTable
from elit_serve.server import problems
from elit_serve.server.generation import answer, bare_answer, encoded, job_of, usable_levels
from elit_serve.server.limits import BodyLimit
from elit_serve.server.metrics import CLIENT_GONE, Metrics, MetricsMiddleware
from elit_serve.server.negotiation import bare_format, media_type_of
from elit_serve.server.schemas import (
    GenerateRequest,
    GenerateResponse,
    Health,
    LevelInfo,
    ModelInfo,
    ModelList,
    Problem,
)
from elit_serve.server.settings import Settings

DESCRIPTION = """One checkpoint, every latency: say what a picture may cost (`budget`), or when it must be there
(`latency_ms`), and the model runs on as many of its latent tokens as that allows."""

STOP_SECONDS = 30  # for the job that is running at shutdown


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes share."""

    pipeline: Pipeline
    settings: Settings
    predictor: Predictor
    worker: Worker
    metrics: Metrics
    clock: Clock


def create_app(pipeline: Pipeline, settings: Settings, *, cost: CostTable, clock: Clock | None = None) -> FastAPI:
    """The application; the worker runs from its start-up to its shutdown."""
    clock = clock or MonotonicClock()
    predictor = Predictor(cost=cost, headroom=settings.headroom)
    worker = Worker(pipeline, predictor, clock=clock, max_queue=settings.max_queue)
    metrics = Metrics(levels=pipeline.config.levels, queue_length=lambda: worker.queue_length)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        try:
            await _warm_up(pipeline, worker, clock)
            yield
        finally:
            await run_in_threadpool(worker.stop, timeout_s=STOP_SECONDS)

    app: FastAPI = FastAPIOffline(
        title="elit-serve",
        description=DESCRIPTION,
        version=elit_serve.__version__,
        lifespan=lifespan,
        redoc_url=None,
        swagger_ui_parameters={"validatorUrl": None},  # otherwise the page asks an outside host
    )
    app.state.service = Service(
        pipeline=pipeline, settings=settings, predictor=predictor, worker=worker, metrics=metrics, clock=clock
    )
    app.include_router(router)
    problems.install(app)
    routes = [route.path for route in router.routes if isinstance(route, APIRoute)]
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(MetricsMiddleware, metrics=metrics, routes=routes, clock=clock)
    return app


async def _warm_up(pipeline: Pipeline, worker: Worker, clock: Clock) -> None:
    """Runs one step on the worker's thread and every encoder once, so that the first caller need not wait for it."""
    plan = pipeline.plan(steps=1)
    job = Job(class_ids=(0,), seeds=(0,), plan=plan, arrived_s=clock.now())
    with suppress(GenerationFailed):  # the worker has logged it; other classes may do better
        outcome = await asyncio.wrap_future(worker.submit(job))
        for output_format in OUTPUT_FORMATS:
            await run_in_threadpool(encoded, outcome, output_format)


router = APIRouter()

_PROBLEM: dict[str, Any] = {"model": Problem, "content": {problems.MEDIA_TYPE: {}}}
_PICTURE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/v1/generate",
    summary="Generate pictures of a class",
    responses={
        200: {
            "model": GenerateResponse,
            "description": "JSON, or by `Accept` a bare picture with the same facts in `X-Elit-` headers.",
            "content": {media_type_of(name): _PICTURE for name in OUTPUT_FORMATS},
        },
        400: {**_PROBLEM, "description": "The body is not JSON."},
        413: {**_PROBLEM, "description": "The body is too large."},
        422: {**_PROBLEM, "description": "A field is not valid, or the latency target cannot be met."},
        500: {**_PROBLEM, "description": "The picture could not be generated."},
        503: {**_PROBLEM, "description": "The queue is full or the engine is down; see `Retry-After`."},
    },
)
async def generate(request: Request, body: GenerateRequest) -> Response:
    service: Service = request.app.state.service
    arrived_s = service.clock.now()
    bare = bare_format(request.headers.get("accept"), body.output_format)
    output_format = bare or body.output_format or "png"
    job = job_of(
        body,
        service.pipeline,
        service.predictor,
        max_images=service.settings.max_images,
        max_image_steps=service.settings.max_image_steps,
        is_bare=bare is not None,
        arrived_s=arrived_s,
    )
    outcome = await _outcome(request, service.worker, job)
    if outcome is None:
        return Response(status_code=CLIENT_GONE)
    files = await run_in_threadpool(encoded, outcome, output_format)
    total_ms = 1000 * (service.clock.now() - arrived_s)
    facts = answer(job, outcome, files, pipeline=service.pipeline, output_format=output_format, total_ms=total_ms)
    for image in facts.images:
        service.metrics.level.observe(image.level)
    if bare is not None:
        return bare_answer(facts, files[0])
    return Response(await run_in_threadpool(facts.model_dump_json), media_type="application/json")


@router.get("/v1/models", summary="The model, its classes and what its levels cost here")
def models(request: Request) -> ModelList:
    service: Service = request.app.state.service
    config = service.pipeline.config
    plan = service.pipeline.plan()
    costs_ms = {level: service.predictor.plan_ms(plan.at_level(level)) for level in usable_levels(plan, config.levels)}
    levels = [
        LevelInfo(
            level=level, budget=budget_of_level(level, config.spec.latents_per_group), latency_ms=costs_ms.get(level)
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
        dtype=str(service.pipeline.dtype).removeprefix("torch."),
    )
    return ModelList(data=[info])


@router.get("/health", summary="Whether the engine runs", responses={503: _PROBLEM})
async def health(request: Request) -> Health:
    service: Service = request.app.state.service
    if not service.worker.is_alive:
        raise EngineStopped("the engine is not running")
    return Health(model=service.pipeline.config.name, queue_length=service.worker.queue_length)


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def metrics(request: Request) -> Response:
    service: Service = request.app.state.service
    return Response(service.metrics.render(), headers={"Content-Type": service.metrics.content_type})


async def _outcome(request: Request, worker: Worker, job: Job) -> Outcome | None:
    """Runs a job; None, with the job given up, when its caller has left."""
    future = worker.submit(job)
    waiting = asyncio.wrap_future(future)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {waiting, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        return None
    finally:
        worker.abandon(future)
        waiting.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
