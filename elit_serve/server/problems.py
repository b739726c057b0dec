"""Errors as RFC 9457 problems: the one table from exceptions to HTTP."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from elit_serve.errors import (
    DeadlineExceeded,
    ElitError,
    EngineStopped,
    GenerationFailed,
    Infeasible,
    InvalidInput,
    Overloaded,
)
from elit_serve.server.schemas import GenerateRequest, GuidanceRequest

MEDIA_TYPE = "application/problem+json"
MAX_SHOWN = 200  # characters of a refused value that are sent back
MAX_ERRORS = 20  # a body may hold a hundred thousand unknown fields, and each explanation takes time
STOPPED_RETRY_AFTER_S = 5


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a class of errors looks like over HTTP."""

    status: int
    name: str
    title: str


KINDS: dict[type[ElitError], Kind] = {
    Infeasible: Kind(status=422, name="infeasible", title="The latency target cannot be met"),
    InvalidInput: Kind(status=422, name="invalid-input", title="The request is not valid"),
    Overloaded: Kind(status=503, name="overloaded", title="Other requests are in the way"),
    EngineStopped: Kind(status=503, name="engine-stopped", title="The engine is not running"),
    DeadlineExceeded: Kind(status=504, name="deadline-exceeded", title="The latency target has passed"),
    GenerationFailed: Kind(status=500, name="generation-failed", title="The picture could not be generated"),
    ElitError: Kind(status=500, name="internal", title="The server failed"),
}


def problem(
    status: int,
    detail: str,
    *,
    name: str | None = None,
    title: str | None = None,
    members: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document; without `name` the status says it all."""
    content = {
        "type": f"urn:elit-serve:{name}" if name else "about:blank",
        "title": title or HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        **(members or {}),
    }
    # ASCII only: a refused value may hold half a surrogate pair, which UTF-8 cannot carry
    return Response(json.dumps(content), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def field_problem(field: str, value: object, allowed: str) -> dict[str, object]:
    return {"field": field, "value": _shown(value), "allowed": allowed}


def problem_of(error: ElitError) -> Response:
    """The answer to one of our own errors."""
    kind = next(KINDS[ancestor] for ancestor in type(error).__mro__ if ancestor in KINDS)
    members: dict[str, object] = {}
    headers: dict[str, str] = {}
    if isinstance(error, InvalidInput):
        members["errors"] = [field_problem(error.field, error.value, error.allowed)]
    if isinstance(error, Infeasible):
        members["min_latency_ms"] = error.min_latency_ms
    if isinstance(error, Overloaded):
        members["reason"] = error.reason
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if isinstance(error, EngineStopped):
        members["reason"] = "stopped"
        headers["Retry-After"] = str(STOPPED_RETRY_AFTER_S)
    return problem(kind.status, str(error), name=kind.name, title=kind.title, members=members, headers=headers)


def install(app: FastAPI) -> None:
    """Makes every error of the app a problem document."""

    @app.exception_handler(ElitError)
    async def ours(_: Request, error: ElitError) -> Response:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        return _invalid_body(error.errors())

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, error.detail, headers=error.headers)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> Response:
        return problem(500, f"the server failed with {type(error).__name__}")


def _invalid_body(errors: Sequence[Any]) -> Response:
    if any(error["type"] == "json_invalid" for error in errors):
        reason = errors[0].get("ctx", {}).get("error", "it cannot be parsed")
        return problem(400, f"the body is not JSON: {reason}")
    allowed: dict[str, list[str]] = {}
    values: dict[str, object] = {}
    for error in errors[:MAX_ERRORS]:
        field = _field_of(error)
        values.setdefault(field, error.get("input"))
        allowed.setdefault(field, []).append(_allowed(error))
    found = [field_problem(field, values[field], "; or ".join(texts)) for field, texts in allowed.items()]
    detail = "; ".join(f"{entry['field']}: {entry['allowed']}" for entry in found)
    if len(errors) > MAX_ERRORS:
        detail += f"; and {len(errors) - MAX_ERRORS} more"
    kind = KINDS[InvalidInput]
    return problem(kind.status, detail, name=kind.name, title=kind.title, members={"errors": found})


def _field_of(error: Mapping[str, Any]) -> str:
    """The field as the caller spelled it; pydantic adds `body`, and names of types inside unions."""
    loc = error["loc"][1:]
    if error["type"] != "extra_forbidden":
        known = {*GenerateRequest.model_fields, *GuidanceRequest.model_fields}
        loc = tuple(part for part in loc if isinstance(part, int) or part in known)
    return ".".join(str(_shown(part)) for part in loc) or "body"


def _allowed(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        fields = list((GuidanceRequest if "guidance" in error["loc"][:-1] else GenerateRequest).model_fields)
        nearest = difflib.get_close_matches(str(error["loc"][-1]), fields, n=1)
        hint = f"did you mean {nearest[0]}? " if nearest else ""
        return f"no such field; {hint}fields are {', '.join(fields)}"
    if error["type"] in ("missing", "model_attributes_type"):
        return "a JSON object, sent with Content-Type: application/json"
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
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
