"""Routes that are our own: pictures and their plans, models (which OpenAI's clients list too), and health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

import elit_serve
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import EngineStopped, RequestNotFound
from elit_serve.files.config import ConditionsConfig, TextConfig
from elit_serve.http import problems
from elit_serve.http.access import access
from elit_serve.http.bodies import BodyRoute
from elit_serve.http.callers import owner_of
from elit_serve.http.groups import Group
from elit_serve.http.negotiation import media_type_of
from elit_serve.http.problems import Problem
from elit_serve.http.schemas import GenerateRequest, GenerateResponse
from elit_serve.plans.formats import ANSWER_FORMATS
from elit_serve.server.answer_status import CLIENT_GONE
from elit_serve.server.answers import bare_answer, rounded
from elit_serve.server.engines import Engine, Engines
from elit_serve.server.forecast import plan_answer
from elit_serve.server.openai.schemas import OpenAIError
from elit_serve.server.orders import bare_format_of, quality_of, usable_levels
from elit_serve.server.schemas import (
    Health,
    LevelInfo,
    MeasuredQuality,
    ModelInfo,
    ModelList,
    PlanResponse,
    PromptInfo,
    Ready,
    SizeInfo,
    Version,
)
from elit_serve.server.service import Service, answer_to, order_for, take
from elit_serve.server.watching.metrics import Metrics
from elit_serve.server.watching.snapshots import Snapshots

router = APIRouter(route_class=BodyRoute)

_PROBLEM: dict[str, Any] = {"model": Problem, "content": {problems.MEDIA_TYPE: {}}}
_NOT_FOUND: dict[str, Any] = {"model": OpenAIError, "description": "Another model is served."}
_FILE: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}


@router.post(
    "/v1/generate",
    tags=[Group.PICTURES],
    summary="Generate pictures of a class",
    responses={
        200: {
            "model": GenerateResponse,
            "description": "JSON, or by `Accept` the bare file with the same facts in `X-Elit-` headers.",
            "content": {media_type_of(name): _FILE for name in ANSWER_FORMATS},
        },
        400: {**_PROBLEM, "description": "The body is not JSON."},
        404: {**_PROBLEM, "description": "Other models are served."},
        406: {**_PROBLEM, "description": "`Accept` names nothing that this model can answer with."},
        413: {**_PROBLEM, "description": "The body is too large."},
        422: {**_PROBLEM, "description": "A field is not valid, or the target cannot be met; see `min_latency_ms`."},
        500: {**_PROBLEM, "description": "The picture could not be generated."},
        503: {**_PROBLEM, "description": "Others are in the way, or the engine is down: `reason`, `Retry-After`."},
        504: {**_PROBLEM, "description": "The request was taken, but its target has passed."},
    },
)
@access(needs="generate", work="pictures")
async def generate(request: Request, body: GenerateRequest) -> Response:
    service: Service = request.app.state.service
    engine = service.engines.of(body.model)
    bare = bare_format_of(request.headers.get("accept"), body, engine.model)
    taken = await take(service, engine, body, output_format=bare, owner=owner_of(request))
    facts = await answer_to(request, service, taken)
    if facts is None:
        return Response(status_code=CLIENT_GONE)
    if bare is not None:
        return bare_answer(facts)
    return Response(await run_in_threadpool(facts.model_dump_json), media_type="application/json")


@router.post(
    "/v1/plan",
    tags=[Group.PICTURES],
    summary="What would become of a request: a dry run of /v1/generate that takes nothing and promises nothing",
    responses={
        400: {**_PROBLEM, "description": "The body is not JSON."},
        404: {**_PROBLEM, "description": "Other models are served."},
        413: {**_PROBLEM, "description": "The body is too large."},
        422: {**_PROBLEM, "description": "A field is not valid. A target that cannot be met is an answer: `refusal`."},
        503: {**_PROBLEM, "description": "The engine is down, or too many are asking for forecasts."},
    },
)
@access(needs="generate", work="plans")
def plan(request: Request, body: GenerateRequest) -> PlanResponse:
    service: Service = request.app.state.service
    engine = service.engines.of(body.model)
    order = order_for(engine, body, arrived_s=service.clock.now())
    foreseen = engine.worker.forecast(order)
    return plan_answer(body, foreseen, order.open_plans, engine.model, engine.cost)


@router.post(
    "/v1/requests/{request_id}/finish",
    tags=[Group.PICTURES],
    summary="Stop now and keep what there is: end pictures that somebody waits for with the fewest steps they allow",
    status_code=202,
    response_class=Response,
    responses={
        202: {"description": "Whoever waits for them gets them soon."},
        404: {**_PROBLEM, "description": "No such request waits, or not with this key."},
        409: {**_PROBLEM, "description": "Nothing of them is there yet."},
    },
)
@access(needs="generate", is_free=True)
async def finish(request: Request, request_id: str) -> Response:
    service: Service = request.app.state.service
    try:
        await run_in_threadpool(service.under_way.finish, request_id, owner_of(request))
    except RequestNotFound:
        answer = None if service.peers is None else await service.peers.answer_to(request)
        if answer is None:
            raise
        return answer
    return Response(status_code=202)


@router.get("/v1/models", tags=[Group.MODELS], summary="The models, their classes and what their levels cost here")
@access(needs="generate", errors="openai")
def models(request: Request) -> ModelList:
    service: Service = request.app.state.service
    return ModelList(data=[model_info(engine, service.started_at) for engine in service.engines.values()])


@router.get("/v1/models/{name}", tags=[Group.MODELS], summary="One of them by its name", responses={404: _NOT_FOUND})
@access(needs="generate", errors="openai")
def model(request: Request, name: str) -> ModelInfo:
    service: Service = request.app.state.service
    return model_info(service.engines.of(name), service.started_at)


def model_info(engine: Engine, loaded_at: int) -> ModelInfo:
    """loaded_at: Unix time in seconds."""
    model, config = engine.model, engine.model.config
    return ModelInfo(
        id=config.name,
        created=loaded_at,
        hash=model.model_hash,
        classes=list(config.classes),
        prompts=_prompts(config.conditions),
        levels=_levels(engine),
        sizes=model.sizes.names,
        size_details=_sizes(engine),
        sample_shape=model.sizes.default.size,
        sampling=config.sampling.model_dump(mode="json"),
        device=model.device_name,
        simulated=model.simulated,
        dtype=model.precision,
        response_ms=engine.settings.response_ms,
        quality=_measured_quality(model),
    )


def _prompts(conditions: ConditionsConfig) -> PromptInfo | None:
    if not isinstance(conditions, TextConfig):
        return None
    return PromptInfo(
        max_tokens=conditions.max_tokens, negative=conditions.negative, examples=list(conditions.examples)
    )


def _measured_quality(model: ServedModel) -> MeasuredQuality | None:
    if model.quality is None:
        return None
    file, factor = model.quality.file, model.quality.factor
    compared = [other for precision, other in file.precisions.items() if precision == model.precision]
    return MeasuredQuality(
        measured_in=file.measured_in,
        factor=None if factor is None else rounded(factor.value),
        factor_half_width=None if factor is None else rounded(factor.half_width),
        num_plans=len(compared[0].plans) if compared else None,
        full_plan=file.full_plan,
    )


def _levels(engine: Engine) -> list[LevelInfo]:
    model, shape = engine.model, engine.model.sizes.default.name
    levels, full = model.config.levels, model.plan()
    plans = {level: model.plan(levels=[level] * full.num_steps) for level in usable_levels(full, levels)}
    costs_ms = {
        level: engine.cost.alone_ms(shape, plan.levels, plan.weak_caps(max(levels))) for level, plan in plans.items()
    }
    return [
        LevelInfo(
            level=level,
            budget=model.budgets.of_level(level),
            latency_ms=costs_ms.get(level),
            quality=quality_of(model, plans[level]) if level in plans else None,
        )
        for level in levels
    ]


def _sizes(engine: Engine) -> list[SizeInfo]:
    plan = engine.model.plan()
    caps = plan.weak_caps(max(engine.model.config.levels))
    return [
        SizeInfo(
            size=str(size),
            width=size.width,
            height=size.height,
            shape=shape.name,
            sample_shape=shape.size,
            latency_ms=engine.cost.alone_ms(shape.name, plan.levels, caps),
        )
        for size, shape in engine.model.sizes.shapes.items()
    ]


@router.get("/health", tags=[Group.OPERATIONS], summary="Whether the engine runs", responses={503: _PROBLEM})
@access(needs="nothing", work="health")
async def health(request: Request) -> Health:
    engines = _living_engines(request)
    return Health(
        status="draining" if engines.are_draining else "ok",
        model=engines.default.name,
        queue_length=engines.num_waiting,
        running=engines.num_running,
    )


@router.get(
    "/liveness", tags=[Group.OPERATIONS], summary="Whether this process should live on", responses={503: _PROBLEM}
)
@router.get("/v2/health/live", include_in_schema=False)
@access(needs="nothing", work="health")
async def liveness(request: Request) -> Ready:
    _living_engines(request)
    return Ready()


@router.get(
    "/readiness",
    tags=[Group.OPERATIONS],
    summary="Whether to send requests here: not while draining",
    responses={503: _PROBLEM},
)
@router.get("/v2/health/ready", include_in_schema=False)
@access(needs="nothing", work="health")
async def readiness(request: Request) -> Ready:
    if not _living_engines(request).are_ready:
        raise EngineStopped("the engine takes no more work")
    return Ready()


@router.get("/version", tags=[Group.OPERATIONS], summary="The server's version")
@access(needs="any key")
async def version() -> Version:
    return Version(version=elit_serve.__version__)


@router.get("/metrics", tags=[Group.OPERATIONS], summary="Prometheus metrics", response_class=Response)
@access(needs="metrics", work="metrics")
async def metrics(request: Request) -> Response:
    rendered: Snapshots[bytes] = request.app.state.rendered_metrics  # writing it takes 7 ms
    return Response(await rendered.fresh(), headers={"Content-Type": Metrics.content_type})


def _living_engines(request: Request) -> Engines:
    service: Service = request.app.state.service
    if not service.engines.are_alive:
        raise EngineStopped("the engine is not running")
    return service.engines
