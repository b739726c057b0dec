"""Faults as RFC 9457 problems, and the schema of those in the OpenAPI document."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from elit_serve.http.faults import Fault

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    field: str
    value: Any
    allowed: str


class Problem(BaseModel):
    """RFC 9457."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | None = None
    min_latency_ms: float | None = None
    retry_after_ms: int | None = None
    reason: str | None = None
    request_id: str | None = None


def documented(description: str) -> dict[str, Any]:
    """A problem among the `responses` of a route."""
    return {"model": Problem, "content": {MEDIA_TYPE: {}}, "description": description}


def problem(fault: Fault, request_id: str | None = None) -> Response:
    """The answer to a request that met this fault."""
    content = problem_json(fault, request_id)
    return Response(content, fault.status, headers=dict(fault.headers), media_type=MEDIA_TYPE)


def problem_json(fault: Fault, request_id: str | None = None) -> str:
    """A problem document."""
    content: dict[str, object] = {
        "type": f"urn:elit-serve:{fault.name}" if fault.name else "about:blank",
        "title": fault.title or HTTPStatus(fault.status).phrase,
        "status": fault.status,
        "detail": fault.detail,
    }
    if fault.fields:
        content["errors"] = [
            {"field": part.field, "value": part.value, "allowed": part.allowed} for part in fault.fields
        ]
    optional = {
        "min_latency_ms": fault.min_latency_ms,
        "retry_after_ms": fault.retry_after_ms,
        "reason": fault.reason,
        "request_id": request_id,
    }
    content |= {name: value for name, value in optional.items() if value is not None}
    # ASCII only: a refused value may hold half a surrogate pair, which UTF-8 cannot carry
    return json.dumps(content)
