"""A shift of the time grid as files write it: a number, or a table of `plans.TimeShift` with its factor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator, TypeAdapter

from elit_serve.plans.bounds import (
    MAX_LAST_NOISE,
    MAX_SHIFT_GROWTH,
    MAX_TIME_SHIFT,
    MIN_LAST_NOISE,
    MIN_TIME_SHIFT,
)
from elit_serve.plans.grid import Shift, TimeShift

Factor = Annotated[float, Field(ge=MIN_TIME_SHIFT, le=MAX_TIME_SHIFT, strict=True)]
Noise = Annotated[float, Field(ge=MIN_LAST_NOISE, le=MAX_LAST_NOISE, strict=True)]
Growth = Annotated[float, Field(ge=-MAX_SHIFT_GROWTH, le=MAX_SHIFT_GROWTH, strict=True)]
FACTOR: TypeAdapter[float] = TypeAdapter(Factor)


class _Fields(BaseModel):
    """The fields of `TimeShift` and what a file may say in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Factor
    last: Noise | None = None
    terminal: Noise | None = None
    growth: Growth | None = None


def _shift(written: Any) -> Shift:
    if isinstance(written, TimeShift):
        return written
    if isinstance(written, Mapping):
        fields = _Fields.model_validate(written)
        return TimeShift(factor=fields.factor, last=fields.last, terminal=fields.terminal, growth=fields.growth)
    return FACTOR.validate_python(written)


def shift_table(shift: Shift) -> float | dict[str, float]:
    """As a file holds it: without what is as it would be anyway."""
    if not isinstance(shift, TimeShift):
        return shift
    return {name: value for name, value in asdict(shift).items() if value is not None}


WrittenShift = Annotated[Shift, PlainValidator(_shift), PlainSerializer(shift_table)]
