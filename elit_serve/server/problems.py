"""Faults as RFC 9457 problems."""

from __future__ import annotations

import json
from http import HTTPStatus

from starlette.responses import Response

from elit_serve.server.faults import Fault

MEDIA_TYPE = "application/problem+json"


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
