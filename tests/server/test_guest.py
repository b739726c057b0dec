"""Another guest than jobs: a package with a route of its own, which has the server make its pictures."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import httpx
from fastapi import APIRouter, Request
from serving import COST
from starlette.responses import Response

from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.http.access import access
from elit_serve.http.schemas import GenerateRequest
from elit_serve.server.app import create_app
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.guest import Guest, GuestPort
from elit_serve.server.settings import Settings

router = APIRouter()


def loaded(pipeline: Pipeline, settings: Settings) -> LoadedModel:
    executor = Executor(pipeline, num_slots=num_slots(settings))
    return LoadedModel(pipeline=pipeline, executor=executor, cost=COST)


@router.get("/v1/postcards/{label}")
@access(needs="nothing")
async def postcard(request: Request, label: str) -> Response:
    port: GuestPort = request.app.state.postcards.port
    submitted = port.submit(
        GenerateRequest(label=label, n=1),
        name=label,
        owner=None,
        waited_s=0.0,
        is_awaited=True,
        num_previews=0,
        on_step=request.app.state.postcards.steps.append,
        on_preview=None,
    )
    await asyncio.wrap_future(submitted.future)
    made = submitted.answer()
    assert made is not None
    return Response(made.images[0].b64_json, media_type=f"image/{made.output_format}")


@dataclass
class Postcards:
    port: GuestPort
    log: list[str] = field(default_factory=list)
    steps: list[Any] = field(default_factory=list)

    def start(self) -> None:
        self.log.append("start")

    def stop(self) -> None:
        self.log.append("stop")

    def close(self) -> None:
        self.log.append("close")


def test_a_guest_has_routes_of_its_own_and_lives_with_the_engine(tiny_pipeline: Pipeline) -> None:
    settings = Settings(response_ms=0)
    guest = Guest(name="postcards", router=router, open=lambda port, settings, registry: Postcards(port))  # noqa: ARG005
    app = create_app([loaded(tiny_pipeline, settings)], settings, guests=[guest])

    async def visit() -> None:
        transport = httpx.ASGITransport(app)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport) as client:
            postcard = await client.get("http://server/v1/postcards/tulip")
            assert (postcard.status_code, postcard.headers["Content-Type"]) == (200, "image/png")
            refused = await client.get("http://server/v1/postcards/oak")
            assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "label")
            assert (
                'elit_generations_total{model="tiny",outcome="done"} 1.0'
                in (await client.get("http://server/metrics")).text
            )

    asyncio.run(visit())
    assert app.state.postcards.log == ["start", "stop", "close"]
    assert [step.number for step in app.state.postcards.steps] == [1, 2, 3, 4]


def test_a_server_needs_no_guests(tiny_pipeline: Pipeline) -> None:
    settings = Settings(response_ms=0)
    app = create_app([loaded(tiny_pipeline, settings)], settings)
    assert not any(path.startswith("/v1/jobs") for path in app.openapi()["paths"])
