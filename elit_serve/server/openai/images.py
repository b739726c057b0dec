"""OpenAI's image generation in terms of `/v1/generate`: its fields translated there, the answer translated back."""

from __future__ import annotations

import base64
from statistics import fmean

from elit_serve.engine.picture import Preview
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import InvalidInput
from elit_serve.http.negotiation import media_type_of
from elit_serve.http.schemas import GeneratedImage, GenerateRequest, GenerateResponse, ImageFacts, Wishes
from elit_serve.plans.formats import OUTPUT_FORMATS, OutputFormat
from elit_serve.server.openai.presets import floor_of, preset_of, reached_preset
from elit_serve.server.openai.schemas import (
    CompletedEvent,
    ImagesRequest,
    ImagesResponse,
    InputTokensDetails,
    LinkedImage,
    OutputTokensDetails,
    PartialImageEvent,
    Usage,
)


def generate_request(request: ImagesRequest, model: ServedModel) -> GenerateRequest:
    """The same request for `/v1/generate`. Raises `InvalidInput` for what this model cannot do."""
    if model.is_latent:
        raise InvalidInput("model", model.config.name, "without an autoencoder it has no pictures; see /v1/generate")
    if request.stream and request.response_format == "url":
        raise InvalidInput("response_format", "url", "b64_json with stream, whose events have no URL")
    if request.partial_images and not request.stream:
        raise InvalidInput("partial_images", request.partial_images, "0 or left out, because stream is not true")
    wishes = {name: getattr(request, name) for name in Wishes.model_fields}
    return GenerateRequest(
        **model.conditions.subject(request.prompt, request.negative_prompt),
        n=request.n or 1,
        output_format=request.output_format or OUTPUT_FORMATS[0],
        output_compression=request.output_compression,
        **{**wishes, **floor_of(request, model)},
    )


def images_response(
    facts: GenerateResponse, model: ServedModel, *, created: int, with_urls: bool = False
) -> ImagesResponse:
    """The answer of `/v1/generate` as OpenAI's. created: Unix time in seconds. with_urls: files as `data:` URLs."""
    budgets = [image.budget for image in facts.images]
    output_format = facts.output_format
    assert output_format != "safetensors", "refused before it was made"
    assert facts.size is not None, "only jobs of an earlier version lack it"
    return ImagesResponse(
        created=created,
        data=[_linked(image, output_format) for image in facts.images] if with_urls else facts.images,
        output_format=output_format,
        quality=reached_preset(facts.quality, fmean(budgets), model),
        size=facts.size,
        usage=usage_of(facts, model),
        elit=facts,
    )


def _linked(image: GeneratedImage, output_format: OutputFormat) -> LinkedImage:
    url = f"data:{media_type_of(output_format)};base64,{base64.b64encode(image.b64_json).decode('ascii')}"
    return LinkedImage(url=url, **image.model_dump(include=set(ImageFacts.model_fields)))


def partial_image_event(
    request: ImagesRequest, preview: Preview, output_format: OutputFormat, size: str, *, created: int
) -> PartialImageEvent:
    """A preview as OpenAI streams it. size: of the picture. created: Unix time in seconds."""
    return PartialImageEvent(
        b64_json=preview.file,
        partial_image_index=preview.index,
        seed=preview.seed,
        created_at=created,
        output_format=output_format,
        quality=preset_of(request) or "auto",
        size=size,
    )


def completed_events(facts: GenerateResponse, model: ServedModel, *, created: int) -> list[CompletedEvent]:
    """Each picture of an answer as OpenAI streams it. created: Unix time in seconds."""
    return [_completed_event(image, facts, model, created=created) for image in facts.images]


def _completed_event(
    image: GeneratedImage, facts: GenerateResponse, model: ServedModel, *, created: int
) -> CompletedEvent:
    own = {name: getattr(image, name) for name in ("quality", "gflops", "device_ms")}
    alone = facts.model_copy(update={"images": [image], **own})
    answer = images_response(alone, model, created=created)
    return CompletedEvent(
        b64_json=image.b64_json,
        created_at=answer.created,
        output_format=answer.output_format,
        quality=answer.quality,
        size=answer.size,
        usage=answer.usage,
        seed=image.seed,
        level=image.level,
        budget=image.budget,
        levels=image.levels,
        strides=image.strides,
        elit=answer.elit,
    )


def usage_of(facts: GenerateResponse, model: ServedModel) -> Usage:
    """Of all pictures of an answer."""
    _, *sides = model.sizes.shape_of(facts.size).size
    num_tokens = model.spec.at_size(*sides).num_tokens
    output_tokens = sum(round(image.budget * num_tokens) for image in facts.images)
    return Usage(
        input_tokens=1,
        input_tokens_details=InputTokensDetails(text_tokens=1, image_tokens=0),
        output_tokens=output_tokens,
        output_tokens_details=OutputTokensDetails(image_tokens=output_tokens),
        total_tokens=1 + output_tokens,
        gflops=facts.gflops,
        device_ms=facts.device_ms,
    )
