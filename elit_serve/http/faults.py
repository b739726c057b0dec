"""What goes wrong, as HTTP tells it, whatever the shape of the answer: the one table from exceptions to statuses."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from pydantic import BaseModel

from elit_serve.errors import (
    DeadlineExceeded,
    ElitError,
    EngineStopped,
    GenerationFailed,
    Infeasible,
    InvalidInput,
    InvalidKey,
    JobEnded,
    JobNotDone,
    JobNotFound,
    MissingScope,
    ModelNotFound,
    NotBegun,
    Overloaded,
    PictureNotFound,
    RateLimited,
    RequestNotFound,
    RequestOutstanding,
    ResultsGone,
    ShareExceeded,
    StorageFull,
    StoreUnavailable,
)
from elit_serve.text.spelling import Names

MAX_SHOWN = 200  # characters of a refused value that are sent back
MAX_ERRORS = 20  # explained in an answer; a body may hold a hundred thousand unknown fields
RETRY_AFTER_S: dict[type[ElitError], int] = {EngineStopped: 5, StoreUnavailable: 5, RequestOutstanding: 1}


@dataclass(frozen=True, kw_only=True)
class FaultKind:
    """What a class of errors looks like over HTTP."""

    status: int
    name: str
    title: str


KINDS: dict[type[ElitError], FaultKind] = {
    Infeasible: FaultKind(status=422, name="infeasible", title="The latency target cannot be met"),
    InvalidInput: FaultKind(status=422, name="invalid-input", title="The request is not valid"),
    ModelNotFound: FaultKind(status=404, name="model-not-found", title="This server has another model"),
    Overloaded: FaultKind(status=503, name="overloaded", title="Other requests are in the way"),
    InvalidKey: FaultKind(status=401, name="invalid-api-key", title="An API key is needed"),
    MissingScope: FaultKind(status=403, name="permission-denied", title="The API key does not allow this"),
    RateLimited: FaultKind(status=429, name="rate-limit-exceeded", title="Too many requests"),
    ShareExceeded: FaultKind(status=429, name="share-exceeded", title="Others are waiting"),
    EngineStopped: FaultKind(status=503, name="engine-stopped", title="The engine is not running"),
    DeadlineExceeded: FaultKind(status=504, name="deadline-exceeded", title="The latency target has passed"),
    GenerationFailed: FaultKind(status=500, name="generation-failed", title="The picture could not be generated"),
    RequestOutstanding: FaultKind(status=409, name="request-outstanding", title="The same request is being answered"),
    JobNotFound: FaultKind(status=404, name="job-not-found", title="There is no such job"),
    JobEnded: FaultKind(status=409, name="job-ended", title="The job has ended"),
    RequestNotFound: FaultKind(status=404, name="request-not-found", title="There is no such request"),
    NotBegun: FaultKind(status=409, name="not-begun", title="Nothing is there to keep yet"),
    PictureNotFound: FaultKind(status=404, name="picture-not-found", title="The job has fewer pictures"),
    JobNotDone: FaultKind(status=409, name="job-not-done", title="The job has no pictures"),
    ResultsGone: FaultKind(status=410, name="results-gone", title="The pictures have been removed"),
    StoreUnavailable: FaultKind(status=503, name="store-unavailable", title="Jobs are not to be had at present"),
    StorageFull: FaultKind(status=507, name="storage-full", title="There is no room for more jobs"),
    ElitError: FaultKind(status=500, name="internal", title="The server failed"),
}


@dataclass(frozen=True, kw_only=True)
class FieldFault:
    """A field that is wrong. kind: `unknown`, `missing`, `type` or `value`."""

    field: str
    value: object
    allowed: str
    kind: str = "value"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """An answer that is no success. Without `name` the status says it all.

    reason: a finer code than the name. min_latency_ms: the smallest target that would do, when that is the trouble.
    retry_after_ms: after how long the same would be taken if nobody else came meanwhile.
    """

    status: int
    detail: str
    name: str | None = None
    title: str | None = None
    fields: tuple[FieldFault, ...] = ()
    reason: str | None = None
    min_latency_ms: float | None = None
    retry_after_ms: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


def fault_of(error: ElitError) -> Fault:
    """One of our own errors."""
    kind = next(KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in KINDS)
    fields: tuple[FieldFault, ...] = ()
    if isinstance(error, InvalidInput):
        fields = (FieldFault(field=error.field, value=_shown(error.value), allowed=error.allowed),)
    return Fault(
        status=kind.status,
        detail=str(error),
        name=kind.name,
        title=kind.title,
        fields=fields,
        reason=_reason(error),
        min_latency_ms=error.min_latency_ms if isinstance(error, Infeasible) else None,
        retry_after_ms=retry_after_ms(error),
        headers=_headers(error),
    )


def retry_after_ms(error: ElitError) -> int | None:
    """When to come back, to the millisecond; the header `Retry-After` has whole seconds only."""
    return math.ceil(1000 * error.retry_after_s) if isinstance(error, Overloaded | RateLimited) else None


def _reason(error: ElitError) -> str | None:
    if isinstance(error, Overloaded):
        return error.reason
    return "stopped" if isinstance(error, EngineStopped) else None


def _headers(error: ElitError) -> Mapping[str, str]:
    """When to come back, or with which key, as RFC 6750 says it."""
    if isinstance(error, Overloaded | RateLimited):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))}
    if type(error) in RETRY_AFTER_S:
        return {"Retry-After": str(RETRY_AFTER_S[type(error)])}
    if isinstance(error, InvalidKey):
        return {"WWW-Authenticate": 'Bearer error="invalid_token"' if error.was_sent else "Bearer"}
    if isinstance(error, MissingScope):
        return {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{error.scope}"'}
    return {}


def fault_of_body(errors: Sequence[Any], schema: type[BaseModel], *, num_left_out: int = 0) -> Fault:
    """What pydantic found wrong with a body that should have followed `schema`. num_left_out: of its unknown fields,
    those that pydantic was spared."""
    if any(error["type"] == "json_invalid" for error in errors):
        reason = errors[0].get("ctx", {}).get("error", "it cannot be parsed")
        return Fault(status=400, detail=f"the body is not JSON: {reason}")
    first: dict[str, Mapping[str, Any]] = {}
    allowed: dict[str, list[str]] = {}
    for error in errors[:MAX_ERRORS]:
        name = _field_of(error, schema)
        first.setdefault(name, error)
        allowed.setdefault(name, []).append(_allowed(error, schema))
    fields = tuple(
        FieldFault(
            field=name,
            value=_shown(error.get("input")),
            allowed="; or ".join(allowed[name]),
            kind=_kind(error["type"]),
        )
        for name, error in first.items()
    )
    detail = "; ".join(f"{fault.field}: {fault.allowed}" for fault in fields)
    num_more = max(0, len(errors) - MAX_ERRORS) + num_left_out
    if num_more > 0:
        detail += f"; and {num_more} more"
    kind = KINDS[InvalidInput]
    return Fault(status=kind.status, detail=detail, name=kind.name, title=kind.title, fields=fields)


def _kind(error_type: str) -> str:
    if error_type in ("extra_forbidden", "missing"):
        return {"extra_forbidden": "unknown", "missing": "missing"}[error_type]
    return "type" if error_type.endswith("_type") else "value"


def _field_of(error: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """The field as the caller spelled it; pydantic adds `body`, and names of types inside unions."""
    loc = error["loc"][1:]
    if error["loc"][0] != "body":
        return str(loc[0])
    if error["type"] != "extra_forbidden":
        inner = [field for part in parts_of(schema).values() for field in part.model_fields]
        known = {*schema.model_fields, *inner}
        loc = tuple(part for part in loc if isinstance(part, int) or part in known)
    return ".".join(str(_shown(part)) for part in loc) or "body"


def parts_of(schema: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """The fields of a schema that are objects themselves."""
    kinds = {name: (field.annotation, *get_args(field.annotation)) for name, field in schema.model_fields.items()}
    return {
        name: kind
        for name, choices in kinds.items()
        for kind in choices
        if isinstance(kind, type) and issubclass(kind, BaseModel)
    }


def _allowed(error: Mapping[str, Any], schema: type[BaseModel]) -> str:
    if error["type"] == "extra_forbidden":
        part = next((model for name, model in parts_of(schema).items() if name in error["loc"][:-1]), schema)
        fields = list(part.model_fields)
        nearest = Names(fields).like(str(error["loc"][-1]))
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        return f"no such field; {hint}fields are {', '.join(fields)}"
    if error["type"] == "missing" and len(error["loc"]) > 1:
        return "this field is needed"
    if error["type"] in ("missing", "model_attributes_type"):
        is_inner = len(error["loc"]) > 1  # a field of the body, and not the body
        return "a JSON object" if is_inner else "a JSON object, sent with Content-Type: application/json"
    message = str(error["msg"])
    return message[:1].lower() + message[1:]


def _shown(value: object) -> object:
    """`value` as JSON may carry it, and no longer than it needs to be."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 63 else "an integer of more than 64 bits"
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    text = value if isinstance(value, str) else _described(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def _described(value: object) -> str:
    """Its `repr`, of which no more is made than is shown."""
    if isinstance(value, bytes):  # a body that does not say that it is JSON
        return repr(value[:MAX_SHOWN])
    describe = reprlib.Repr()
    describe.maxlevel = 3
    describe.maxlist = describe.maxdict = 20
    describe.maxstring = MAX_SHOWN
    return describe.repr(value)
