"""What a plan skips, as files write it: a table with the numbers of its steps, read as `plans.Skips`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, PlainValidator

from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import MAX_STEPS
from elit_serve.plans.skips import Skips

Steps = Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_STEPS)], ...], Field(max_length=MAX_STEPS)]


class _Fields(BaseModel):
    """The fields of `Skips` and what a file may say in them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    core: Steps = ()
    weak: Steps = ()


def _skips(written: Any) -> Skips:
    fields = _Fields.model_validate(vars(written) if isinstance(written, Skips) else written)
    try:
        return Skips(core=fields.core, weak=fields.weak)
    except InvalidInput as error:
        raise ValueError(str(error)) from None


WrittenSkips = Annotated[Skips, PlainValidator(_skips), PlainSerializer(asdict)]
