"""OpenAI's routes."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from elit_serve.engine.picture import Outcome, Preview
from elit_serve.http.access import access
from elit_serve.http.bodies import BodyRoute
from elit_serve.http.callers import owner_of
from elit_serve.http.events import Mailbox, enter_stream, stream_content
from elit_serve.http.groups import Group
from elit_serve.http.schemas import GenerateRequest
from elit_serve.plans.formats import OUTPUT_FORMATS
from elit_serve.server.answer_status import CLIENT_GONE
from elit_serve.server.engines import Engine
from elit_serve.server.openai.images import completed_events, generate_request, images_response, partial_image_event
from elit_serve.server.openai.schemas import (
    CompletedEvent,
    ImagesRequest,
    ImagesResponse,
    OpenAIError,
    PartialImageEvent,
)
from elit_serve.server.openai.stream import ImageStream
from elit_serve.server.service import Service, answer_to, facts_of, take

router = APIRouter(route_class=BodyRoute, tags=[Group.OPENAI])

_ERROR: dict[str, Any] = {"model": OpenAIError}


@router.post(
    "/v1/images/generations",
    summary="Generate pictures of a class, as OpenAI's clients ask for them",
    responses={
        200: {
            "model": ImagesResponse,
            "description": "JSON, or with `stream` the events `image_generation.partial_image` and "
            "`image_generation.completed`.",
            "content": stream_content(
                {
                    "image_generation.partial_image": PartialImageEvent,
                    "image_generation.completed": CompletedEvent,
                    "error": OpenAIError,
                }
            ),
        },
        400: {
            **_ERROR,
            "description": "A field is not valid, or the target cannot be met; see `param`.",
        },
        404: {**_ERROR, "description": "Another model is served."},
        413: {**_ERROR, "description": "The body is too large."},
        500: {**_ERROR, "description": "The picture could not be generated."},
        503: {**_ERROR, "description": "Others are in the way, or the engine is down; see `Retry-After`."},
        504: {**_ERROR, "description": "The request was taken, but its target has passed."},
        "default": {**_ERROR, "description": "Whatever else goes wrong has the same shape."},
    },
)
@access(needs="generate", work="pictures", errors="openai")
async def images_generations(request: Request, body: ImagesRequest) -> Response:
    service: Service = request.app.state.service
    engine = service.engines.of(body.model)
    asked = generate_request(body, engine.model)
    if body.stream:
        return await _stream(request, service, engine, body, asked)
    taken = await take(service, engine, asked, owner=owner_of(request))
    facts = await answer_to(request, service, taken)
    if facts is None:
        return Response(status_code=CLIENT_GONE)
    made = int(time.time())

    def written() -> str:  # with files in base64, which takes a while
        with_urls = body.response_format == "url"
        return images_response(facts, engine.model, created=made, with_urls=with_urls).model_dump_json()

    return Response(await run_in_threadpool(written), media_type="application/json")


async def _stream(
    request: Request,
    service: Service,
    engine: Engine,
    body: ImagesRequest,
    asked: GenerateRequest,
) -> Response:
    """What is refused is refused as ever; events come once the request is taken."""
    enter_stream(request)
    previews: Mailbox[Preview] = Mailbox()
    taken = await take(
        service,
        engine,
        asked,
        owner=owner_of(request),
        num_previews=body.partial_images or 0,
        on_preview=previews.put if body.partial_images else None,
    )

    size = str(engine.model.sizes.size_of(taken.order.shape))

    def preview_event(preview: Preview) -> PartialImageEvent:
        output_format = body.output_format or OUTPUT_FORMATS[0]
        return partial_image_event(body, preview, output_format, size, created=int(time.time()))

    def end_events(outcome: Outcome) -> list[CompletedEvent]:
        return completed_events(facts_of(service, taken, outcome), engine.model, created=int(time.time()))

    return ImageStream(
        taken,
        previews,
        preview_event=preview_event,
        end_events=end_events,
        metrics=service.metrics.of(engine.name),
        under_way=service.under_way,
    )
