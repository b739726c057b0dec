"""Every route declares what it asks of its callers; what declares nothing is closed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.routing import BaseRoute

from elit_serve.guests import GUESTS
from elit_serve.http.access import UNDECLARED, Access, AccessTable, access, access_of
from elit_serve.server import routes
from elit_serve.server.app import new_app
from elit_serve.server.openai import routes as openai_routes
from elit_serve.server.page import thumbnails
from elit_serve.server.page.page import page_router
from elit_serve.server.watching import live


def all_routes() -> Iterator[BaseRoute]:
    """Of a whole server."""
    yield from new_app().routes
    for router in (routes.router, openai_routes.router, live.router, thumbnails.router, page_router()):
        yield from router.routes
    for guest in GUESTS:
        yield from guest.router.routes


def path_of(route: BaseRoute) -> str:
    return str(getattr(route, "path", route))


@pytest.mark.parametrize("route", list(all_routes()), ids=path_of)
def test_a_route_declares_what_it_asks(route: BaseRoute) -> None:
    assert access_of(route) is not None


def test_no_route_of_a_server_is_missing_here(server: Any) -> None:
    known = {path_of(route) for route in all_routes()}
    assert set(server.app.openapi()["paths"]) <= known
    assert known >= {"/", "/static/{name}", "/docs", "/openapi.json", "/static-offline-docs", "/v2/health/live"}


def test_without_a_key_only_health_and_the_page_are_open() -> None:
    open_ones = {path_of(route) for route in all_routes() if (found := access_of(route)) and found.needs == "nothing"}
    health = {"/health", "/liveness", "/readiness", "/v2/health/live", "/v2/health/ready"}
    assert open_ones == {*health, "/", "/static/{name}"}


router = APIRouter()


@router.get("/open")
@access(needs="nothing")
def open_to_all() -> None: ...


@router.post("/pictures/{name}")
@access(needs="generate", work="pictures", errors="openai")
def pictures(name: str) -> None: ...


@router.get("/forgotten")
def forgotten() -> None: ...


TABLE = AccessTable(router.routes, lambda path: Access(needs="generate" if path == "/nowhere" else "admin"))


@pytest.mark.parametrize(
    ("method", "path", "found"),
    [
        ("GET", "/open", Access(needs="nothing")),
        ("HEAD", "/open", Access(needs="nothing")),
        ("POST", "/pictures/a", Access(needs="generate", work="pictures", errors="openai")),
        ("GET", "/pictures/a", Access(needs="generate", work="others", errors="openai")),
        ("POST", "/pictures/a/b", Access(needs="admin")),
        ("GET", "/forgotten", UNDECLARED),
        ("GET", "/nowhere", Access(needs="generate")),
    ],
)
def test_what_is_declared_is_found_by_method_and_path(method: str, path: str, found: Access) -> None:
    assert TABLE.of(method, path) == found


def test_what_is_declared_does_not_show_in_the_document() -> None:
    app = FastAPI()
    app.include_router(router)
    assert "access" not in str(app.openapi())
