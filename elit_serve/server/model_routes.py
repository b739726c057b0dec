"""The model that is served: what it is, and what its levels cost here. OpenAI's clients list and retrieve it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from elit_serve.errors import ModelNotFound
from elit_serve.http.groups import Group
from elit_serve.server.generation import quality_of, usable_levels
from elit_serve.server.openai.schemas import OpenAIError
from elit_serve.server.schemas import LevelInfo, ModelInfo, ModelList
from elit_serve.server.service import Service

router = APIRouter(tags=[Group.MODELS])

_NOT_FOUND: dict[str, Any] = {"model": OpenAIError, "description": "Another model is served."}


@router.get("/v1/models", summary="The model, its classes and what its levels cost here")
def models(request: Request) -> ModelList:
    return ModelList(data=[model_info(request.app.state.service)])


@router.get("/v1/models/{name}", summary="The same by the model's name", responses={404: _NOT_FOUND})
def model(request: Request, name: str) -> ModelInfo:
    service: Service = request.app.state.service
    if name != service.pipeline.config.name:
        raise ModelNotFound(name, service.pipeline.config.name)
    return model_info(service)


def model_info(service: Service) -> ModelInfo:
    config = service.pipeline.config
    return ModelInfo(
        id=config.name,
        created=service.started_at,
        hash=service.pipeline.model_hash,
        classes=list(config.classes),
        levels=_levels(service),
        sample_shape=config.default_shape.size,
        sampling=config.sampling.model_dump(mode="json"),
        device=str(service.pipeline.device),
        dtype=service.pipeline.precision,
    )


def _levels(service: Service) -> list[LevelInfo]:
    config = service.pipeline.config
    plan = service.pipeline.plan()
    caps = plan.weak_caps(max(config.levels))
    costs_ms = {
        level: service.cost.alone_ms(service.cost.shapes[0], (level,) * plan.num_steps, caps)
        for level in usable_levels(plan, config.levels)
    }
    return [
        LevelInfo(
            level=level,
            budget=service.pipeline.budgets.of_level(level),
            latency_ms=costs_ms.get(level),
            quality=quality_of(service.pipeline, plan.at_level(level)),
        )
        for level in config.levels
    ]
