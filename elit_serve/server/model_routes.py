"""The models that are served: what they are and what their levels cost. OpenAI's clients list and retrieve them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from elit_serve.http.access import access
from elit_serve.http.groups import Group
from elit_serve.server.engines import Engine
from elit_serve.server.generation import quality_of, usable_levels
from elit_serve.server.openai.schemas import OpenAIError
from elit_serve.server.schemas import LevelInfo, ModelInfo, ModelList
from elit_serve.server.service import Service

router = APIRouter(tags=[Group.MODELS])

_NOT_FOUND: dict[str, Any] = {"model": OpenAIError, "description": "Another model is served."}


@router.get("/v1/models", summary="The models, their classes and what their levels cost here")
@access(needs="generate", errors="openai")
def models(request: Request) -> ModelList:
    service: Service = request.app.state.service
    return ModelList(data=[model_info(engine, service.started_at) for engine in service.engines.values()])


@router.get("/v1/models/{name}", summary="One of them by its name", responses={404: _NOT_FOUND})
@access(needs="generate", errors="openai")
def model(request: Request, name: str) -> ModelInfo:
    service: Service = request.app.state.service
    return model_info(service.engines.of(name), service.started_at)


def model_info(engine: Engine, loaded_at: int) -> ModelInfo:
    """loaded_at: Unix time in seconds."""
    pipeline, config = engine.pipeline, engine.pipeline.config
    return ModelInfo(
        id=config.name,
        created=loaded_at,
        hash=pipeline.model_hash,
        classes=list(config.classes),
        levels=_levels(engine),
        sample_shape=config.default_shape.size,
        sampling=config.sampling.model_dump(mode="json"),
        device=str(pipeline.device),
        dtype=pipeline.precision,
    )


def _levels(engine: Engine) -> list[LevelInfo]:
    config = engine.pipeline.config
    plan = engine.pipeline.plan()
    caps = plan.weak_caps(max(config.levels))
    costs_ms = {
        level: engine.cost.alone_ms(engine.cost.shapes[0], (level,) * plan.num_steps, caps)
        for level in usable_levels(plan, config.levels)
    }
    return [
        LevelInfo(
            level=level,
            budget=engine.pipeline.budgets.of_level(level),
            latency_ms=costs_ms.get(level),
            quality=quality_of(engine.pipeline, plan.at_level(level)),
        )
        for level in config.levels
    ]
