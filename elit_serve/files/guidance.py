"""Guidance as files and recipes write it: a table with a method and its numbers, read as `plans.Guidance`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import MAX_GUIDANCE_SCALE, MAX_LEVEL
from elit_serve.plans.guidance import Guidance, GuidanceMethod


class _Fields(BaseModel):
    """The fields of `Guidance` and what a file may say in them; what is left out is its default."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    method: GuidanceMethod = "none"
    scale: float = Field(default=1.0, ge=1, le=MAX_GUIDANCE_SCALE)
    weak_level: int = Field(default=1, ge=1, le=MAX_LEVEL)
    interval: tuple[float, float] = (0.0, 1.0)


def _guidance(written: Any) -> Guidance:
    fields = _Fields.model_validate(vars(written) if isinstance(written, Guidance) else written)
    try:
        return Guidance(
            method=fields.method, scale=fields.scale, weak_level=fields.weak_level, interval=fields.interval
        )
    except InvalidInput as error:
        raise ValueError(str(error)) from None


WrittenGuidance = Annotated[Guidance, PlainValidator(_guidance), PlainSerializer(asdict)]
