"""Faults in the shape in which OpenAI's clients expect them."""

from __future__ import annotations

import json
import re

from starlette.responses import Response

from elit_serve.http.faults import Fault, FieldFault

_FIELD_CODES = {
    "unknown": "unknown_parameter",
    "missing": "missing_required_parameter",
    "type": "invalid_type",
    "value": "invalid_value",
}
_STATUS_CODES = {
    401: "invalid_api_key",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    413: "request_too_large",
    429: "rate_limit_exceeded",
}


OPENAI_PATH = re.compile(  # as OpenAI's client of November 2026 asks for them
    "/v1/(agents|assistants|audio|batches|chat|chatkit|completions|containers|conversations|embeddings|evals|files|"
    "fine_tuning|images|models|moderations|organization|projects|realtime|responses|skills|threads|uploads|vaults|"
    "vector_stores|videos)(/.*)?",
    re.DOTALL,
)


def is_openai(path: str) -> bool:
    """Whether it is one of OpenAI's routes, those that are not served included."""
    return OPENAI_PATH.fullmatch(path) is not None


def openai_error(fault: Fault) -> Response:
    """`{"error": {"message", "type", "param", "code"}}`; what cannot be asked for is a 400, whose message names what
    can. An infeasible target has `min_latency_ms` beside these, and who may come back `retry_after_ms`.

    OpenAI's clients send again whatever answers 5xx, unless `x-should-retry` says no: after a target has passed, they
    would have the picture made twice for nobody.
    """
    headers = {**fault.headers, **({"x-should-retry": "false"} if fault.status == 504 else {})}
    return Response(error_json(fault), _status(fault), headers=headers, media_type="application/json")


def error_json(fault: Fault) -> str:
    """The body alone, as it is streamed too. ASCII only, as in a problem."""
    first = fault.fields[0] if fault.fields else None
    error: dict[str, object] = {
        "message": fault.detail,
        "type": _type(_status(fault)),
        "param": first.field if first else None,
        "code": _code(fault, first),
    }
    for name in ("min_latency_ms", "retry_after_ms"):
        if (value := getattr(fault, name)) is not None:
            error[name] = value
    return json.dumps({"error": error})


def _status(fault: Fault) -> int:
    return 400 if fault.status == 422 else fault.status


def _type(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def _code(fault: Fault, first: FieldFault | None) -> str | None:
    if fault.name == "invalid-input" and first is not None:
        return _FIELD_CODES[first.kind]
    name = fault.reason or fault.name
    return name.replace("-", "_") if name else _STATUS_CODES.get(fault.status)
