"""How bodies become values: with a bound on the work, whatever was sent, and off the event loop if they are large."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import HTTPException, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.responses import Response

from elit_serve.http.faults import MAX_ERRORS, MAX_SHOWN, parts_of

LARGE_BYTES = 16 << 10  # parsing as many takes less than a millisecond, going to a thread and back a tenth of one
MAX_CONTAINERS = 1000  # a request needs four; a million of them keep Python's garbage collector busy for seconds


class BodyRoute(APIRoute):
    """A route whose body, if it takes one, is parsed here: on the one thread of the app's `parsing` where it is large.

    What is wrong with a body is told by its schema, which stands in the request's state as `body_schema`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        schema = self.body_field.field_info.annotation
        assert isinstance(schema, type)
        assert issubclass(schema, BaseModel)

        async def handle_bounded(request: Request) -> Response:
            request.state.body_schema = schema
            _check_coding(request.headers.get("content-encoding"))
            return await handle(_BodyRequest(request, schema))

        return handle_bounded


def _check_coding(coding: str | None) -> None:
    """Raises `HTTPException` for a body that is compressed: what it would become, no bound could tell beforehand."""
    if coding is not None and coding.strip().lower() not in ("", "identity"):
        detail = f"the body is in the coding {coding[:MAX_SHOWN]}; send it as it is, without Content-Encoding"
        raise HTTPException(415, detail, headers={"Accept-Encoding": "identity"})


class _BodyRequest(Request):
    """Leaves out most of the fields that `schema` does not have, and says in the state how many: `fields_left_out`."""

    def __init__(self, request: Request, schema: type[BaseModel]) -> None:
        super().__init__(request.scope, request.receive)
        self._schema = schema

    async def json(self) -> Any:
        body = await self.body()
        if len(body) < LARGE_BYTES:
            value, left_out = parse(body, self._schema)
        else:  # one at a time, so that many at once take neither the memory nor the interpreter from others
            limiter: CapacityLimiter = self.app.state.parsing
            value, left_out = await to_thread.run_sync(parse, body, self._schema, limiter=limiter)
        self.state.fields_left_out = left_out
        return value


def parse(body: bytes, schema: type[BaseModel]) -> tuple[Any, int]:
    """The value of a JSON text without most of its unknown fields, and how many these are.

    Raises `HTTPException` if the text has too many parts or is no text, `ValueError` or `RecursionError` if it is no
    JSON.
    """
    if num_containers(body) > MAX_CONTAINERS:
        raise HTTPException(400, f"the body has more than {MAX_CONTAINERS} lists and objects, which no request needs")
    try:
        value = json.loads(body)
    except UnicodeDecodeError as error:
        raise HTTPException(400, "the body is not JSON: it is not in UTF-8") from error
    return known_part(value, schema)


def num_containers(body: bytes) -> int:
    """Lists and objects in a JSON text, counted before any of them is made."""
    count = body.count(b"[") + body.count(b"{")
    if count <= MAX_CONTAINERS:
        return count
    # brackets inside strings do not count; what lies between quotes, once none is escaped, is every other part
    outside = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2]
    return sum(part.count(b"[") + part.count(b"{") for part in outside)


def known_part(value: Any, schema: type[BaseModel]) -> tuple[Any, int]:
    """A body without the unknown fields that no answer would show, and how many these are."""
    if not isinstance(value, dict):
        return value, 0
    unknown = [name for name in value if name not in schema.model_fields]
    hidden = set(unknown[MAX_ERRORS:])
    kept = {name: part for name, part in value.items() if name not in hidden} if hidden else value
    num_hidden = len(hidden)
    for name, inner in parts_of(schema).items():
        if name in kept:
            kept[name], num_inner = known_part(kept[name], inner)
            num_hidden += num_inner
    return kept, num_hidden
