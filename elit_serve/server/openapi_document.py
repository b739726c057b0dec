"""What the middlewares answer, for the OpenAPI document: routes do not know of keys and limits."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from elit_serve.http.events import is_stream
from elit_serve.http.problems import MEDIA_TYPE
from elit_serve.server.middleware.auth import need_of
from elit_serve.server.middleware.error_answers import is_openai
from elit_serve.server.middleware.lane import HEALTH_PATHS

SCHEME = "apiKey"


def complete(app: FastAPI, *, has_keys: bool) -> None:
    """Has the app's document tell who may call a route, and every status that it may answer with."""
    document = app.openapi()  # made once and kept by the app
    if has_keys:
        document["components"]["securitySchemes"] = {SCHEME: {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, description in _statuses(
                path, method, has_keys=has_keys, is_stream=is_stream(operation)
            ).items():
                operation["responses"].setdefault(status, _response(path, description))
            if has_keys and need_of(path) != "nothing":
                operation["security"] = [{SCHEME: []}]


def _statuses(path: str, method: str, *, has_keys: bool, is_stream: bool) -> dict[str, str]:
    statuses = {} if path in HEALTH_PATHS else {"503": "Too many requests are under way; see `Retry-After`."}
    need = need_of(path)
    if has_keys and need != "nothing":
        statuses["401"] = "There is no API key, or it is not valid."
        if need != "any key":
            statuses["403"] = f"The API key does not have the scope `{need}`."
        if method == "post":
            statuses["429"] = "The API key has asked too often, or has its share of the queue; see `Retry-After`."
        if is_stream:
            statuses["429"] = "The API key has as many streams open as it may; see `Retry-After`."
    return statuses


def _response(path: str, description: str) -> dict[str, Any]:
    media_type, schema = ("application/json", "OpenAIError") if is_openai(path) else (MEDIA_TYPE, "Problem")
    content = {media_type: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}
