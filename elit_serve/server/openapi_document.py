"""What the middlewares answer, for the OpenAPI document: by what each route declares."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from elit_serve.http.access import Access, AccessTable
from elit_serve.http.events import is_stream
from elit_serve.http.problems import MEDIA_TYPE

SCHEME = "apiKey"


def complete(app: FastAPI, access: AccessTable, *, has_keys: bool) -> None:
    """Has the app's document tell who may call a route, and every status that it may answer with."""
    document = app.openapi()  # made once and kept by the app
    if has_keys:
        document["components"]["securitySchemes"] = {SCHEME: {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            declared = access.of(method.upper(), path)
            statuses = _statuses(declared, method, has_keys=has_keys, is_stream=is_stream(operation))
            if "requestBody" in operation:
                statuses["415"] = "The body is compressed."
            for status, description in statuses.items():
                operation["responses"].setdefault(status, _response(declared, description))
            if has_keys and declared.needs != "nothing":
                operation["security"] = [{SCHEME: []}]


def _statuses(declared: Access, method: str, *, has_keys: bool, is_stream: bool) -> dict[str, str]:
    statuses = {}
    if declared.work != "health":
        statuses["503"] = "Too many requests are under way; see `Retry-After`."
    if has_keys and declared.needs != "nothing":
        statuses["401"] = "There is no API key, or it is not valid."
        if declared.needs != "any key":
            statuses["403"] = f"The API key does not have the scope `{declared.needs}`."
        if method == "post":
            statuses["429"] = "The API key has asked too often, or has its share of the queue; see `Retry-After`."
        if is_stream:
            statuses["429"] = "The API key has as many streams open as it may; see `Retry-After`."
    return statuses


def _response(declared: Access, description: str) -> dict[str, Any]:
    is_openai = declared.errors == "openai"
    media_type, schema = ("application/json", "OpenAIError") if is_openai else (MEDIA_TYPE, "Problem")
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}
