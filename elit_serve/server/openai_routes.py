"""OpenAI's routes."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from elit_serve.pictures import FILE_QUALITY
from elit_serve.server.generation import Form
from elit_serve.server.metrics import CLIENT_GONE
from elit_serve.server.openai_images import generate_request, images_response
from elit_serve.server.openai_schemas import ImagesRequest, ImagesResponse, OpenAIError
from elit_serve.server.service import Service, make

router = APIRouter()

_ERROR: dict[str, Any] = {"model": OpenAIError}


@router.post(
    "/v1/images/generations",
    summary="Generate pictures of a class, as OpenAI's clients ask for them",
    responses={
        200: {"model": ImagesResponse},
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
async def images_generations(request: Request, body: ImagesRequest) -> Response:
    service: Service = request.app.state.service
    asked = generate_request(body, service.pipeline)
    assert asked.output_format is not None
    form = Form(output_format=asked.output_format, is_bare=False)
    file_quality = FILE_QUALITY if body.output_compression is None else body.output_compression
    facts = await make(request, service, asked, form, file_quality=file_quality)
    if facts is None:
        return Response(status_code=CLIENT_GONE)
    answer = images_response(facts, service.pipeline, created=int(time.time()))
    return Response(await run_in_threadpool(answer.model_dump_json), media_type="application/json")
