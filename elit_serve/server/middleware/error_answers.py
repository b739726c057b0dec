"""Every error of the app, in the shape of the route on which it happened."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from elit_serve.errors import ElitError
from elit_serve.http.access import Access, access_of
from elit_serve.http.faults import Fault, fault_of, fault_of_body
from elit_serve.http.problems import problem
from elit_serve.http.schemas import RequestBody
from elit_serve.server.middleware.head_requests import with_head
from elit_serve.server.middleware.prefix import route_path
from elit_serve.server.openai.errors import openai_error


def asked_of(scope: Scope) -> Access:
    """What the route of a request declares, which `RequestContext` has looked up."""
    found: Access = scope["state"]["access"]
    return found


def error_answer(fault: Fault, scope: Scope) -> Response:
    """In the shape of the route. The fault goes into the request's state."""
    scope["state"]["fault"] = fault
    if asked_of(scope).errors == "openai":
        return openai_error(fault)
    return problem(fault, scope["state"]["request_id"])


def install(app: FastAPI, routes: Sequence[APIRoute] = ()) -> None:
    """Gives every error that a route may raise its answer. routes: those of the app that share paths."""

    @app.exception_handler(ElitError)
    async def ours(request: Request, error: ElitError) -> Response:
        return error_answer(fault_of(error), request.scope)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        state = request.scope["state"]  # of a route with a body, `BodyRoute` says more
        schema, num_left_out = state.get("body_schema", RequestBody), state.get("fields_left_out", 0)
        return error_answer(fault_of_body(error.errors(), schema, num_left_out=num_left_out), request.scope)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        path, status = route_path(request.scope), error.status_code
        allowed = _allowed(path, routes) if status == 405 else {}
        is_missing = status in (404, 405) and asked_of(request.scope).errors == "openai"
        detail = f"{error.detail}: {_openai_routes(routes)}" if is_missing else error.detail
        fault = Fault(status=status, detail=detail, headers={**(error.headers or {}), **allowed})
        return error_answer(fault, request.scope)


def _allowed(path: str, routes: Sequence[APIRoute]) -> dict[str, str]:
    """`Allow` with the methods of all routes of a path, of which Starlette tells the first one's. What is none of
    `routes` can only be read: files, and the documentation."""
    methods = {method for route in routes if route.path_regex.match(path) for method in route.methods or ()} or {"GET"}
    return {"Allow": ", ".join(sorted(with_head(methods)))}


def _openai_routes(routes: Sequence[APIRoute]) -> str:
    """Those that there are, for who has asked for another."""
    ours = (route for route in routes if (declared := access_of(route)) and declared.errors == "openai")
    served = {route.path.replace("{name}", "NAME"): route.methods or () for route in ours}
    named = [f"{method} {path}" for path, methods in served.items() for method in methods if method != "HEAD"]
    return f"of OpenAI's routes this server has {', '.join(sorted(named))}"
