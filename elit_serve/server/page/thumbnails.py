"""A small picture of each class, which the model makes when somebody first looks at it, and the server then keeps."""

from __future__ import annotations

import asyncio
import io
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response

from elit_serve.engine.conditions import Condition
from elit_serve.errors import InvalidInput
from elit_serve.http import problems
from elit_serve.http.access import access
from elit_serve.http.groups import Group
from elit_serve.http.negotiation import media_type_of
from elit_serve.http.problems import Problem
from elit_serve.http.schemas import GenerateRequest
from elit_serve.server.engines import Engine
from elit_serve.server.orders import Taken, usable_levels
from elit_serve.server.service import Service, hand_over, order_for

SIDE_PX = 96  # at most
MAX_STEPS = 8
BUDGET = 0.25  # so much, or what is trained nearest to it: a quarter of the steps' cost at full budget, or less
SEED = 0
FILE_QUALITY = 80
HEADERS = {"Cache-Control": "private, max-age=86400"}  # the page's addresses name the weights too

router = APIRouter()

_PROBLEM: dict[str, Any] = {"model": Problem, "content": {problems.MEDIA_TYPE: {}}}


@router.get(
    "/v1/models/{name}/classes/{class_id}/thumbnail",
    tags=[Group.MODELS],
    summary="A small picture of a class, made by the model when it is first asked for",
    response_class=Response,
    responses={
        200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}},
        404: {**_PROBLEM, "description": "Other models are served."},
        422: {**_PROBLEM, "description": "There is no such class, or the model makes no pictures."},
        500: {**_PROBLEM, "description": "It could not be made."},
        503: {**_PROBLEM, "description": "Others are in the way, or the engine is down."},
        504: {**_PROBLEM, "description": "It took too long."},
    },
)
@access(needs="generate", work="pictures")
async def thumbnail(request: Request, name: str, class_id: int) -> Response:
    thumbnails: Thumbnails = request.app.state.thumbnails
    file = await thumbnails.of(name, class_id)
    return Response(file, media_type=media_type_of("webp"), headers=HEADERS)


class Thumbnails:
    """Those that were made so far. They are as many as there are classes at most, of a few kilobytes each.

    The server makes one at a time, as work that yields to every promise and to everybody who waits for a picture; it
    counts as nobody's request.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self._files: dict[tuple[str, Condition], bytes] = {}
        self._turn = asyncio.Lock()

    async def of(self, model: str, class_id: int) -> bytes:
        """A WebP file. Raises `ModelNotFound`, `InvalidInput` for a class that there is not, and what engines raise."""
        engine = self._service.engines.of(model)
        key = engine.name, engine.model.conditions.named(class_id, field="class_id")
        if key not in self._files:
            async with self._turn:
                if key not in self._files:  # whoever had the turn may have asked for the same
                    self._files[key] = await self._made(engine, class_id)
        return self._files[key]

    async def _made(self, engine: Engine, class_id: int) -> bytes:
        if engine.model.is_latent:
            raise InvalidInput("name", engine.name, "without an autoencoder it has no pictures")
        taken = await to_thread.run_sync(self._take, engine, class_id, limiter=self._service.admission)
        outcome = await asyncio.wrap_future(taken.future)
        return await to_thread.run_sync(shrunk, outcome.pictures[0].file)

    def _take(self, engine: Engine, class_id: int) -> Taken:
        body = request_of(engine, class_id)
        return hand_over(engine, body, order_for(engine, body, arrived_s=self._service.clock.now()))


def request_of(engine: Engine, class_id: int) -> GenerateRequest:
    """What is asked of the engine: a picture that costs little and yields to others."""
    config, settings = engine.model.config, engine.settings
    steps = min(MAX_STEPS, config.sampling.steps, settings.max_image_steps)
    levels = usable_levels(engine.model.plan(steps=steps), config.levels)
    budgets = [engine.model.budgets.of_level(level) for level in levels]
    budget = min(budgets, key=lambda share: abs(share - BUDGET))
    return GenerateRequest(
        label=class_id,
        seed=SEED,
        steps=steps,
        budget=budget,
        priority="batch",
        output_format="webp",
        output_compression=FILE_QUALITY,
    )


def shrunk(file: bytes) -> bytes:
    """A WebP file of at most `SIDE_PX` a side, without the facts inside: it is no picture that somebody asked for."""
    with Image.open(io.BytesIO(file)) as image:
        image.thumbnail((SIDE_PX, SIDE_PX))
        buffer = io.BytesIO()
        image.convert("RGB").save(buffer, "WEBP", quality=FILE_QUALITY)
    return buffer.getvalue()
