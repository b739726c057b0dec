"""OpenAI's image generation, as it looks from outside; what is not served of it is no field here."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from elit_serve.http.schemas import Base64File, GeneratedImage, GenerateFacts, ImageFacts, RequestBody, Wishes
from elit_serve.plans.formats import OutputFormat
from elit_serve.plans.presets import QualityPreset

MAX_PARTIAL_IMAGES = 3


class OpenAIFields(RequestBody):
    """What OpenAI's own clients send; null is the same as leaving a field out."""

    prompt: str = Field(
        max_length=32_000,
        description="What the pictures show, in at most 10,000 characters; of a model of classes a class name or a "
        "class id, and nothing else.",
    )
    model: str | None = Field(default=None, max_length=200, description="The model that is served, or left out.")
    n: int | None = Field(default=None, ge=1, description="Pictures; 1 when left out. Taken all or none.")
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = Field(
        default=None,
        description="How good pictures are at least: as those of budget 0.25 (`low`), 0.5 (`medium`, `standard`) or 1 "
        "(`high`, `hd`). `auto` leaves it to the server, or to the fields that say more.",
    )
    output_format: OutputFormat | None = Field(default=None, description="png when left out.")
    output_compression: int | None = Field(
        default=None, ge=0, le=100, description="Of jpeg and webp: 100 is the largest and best file, 95 when left out."
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None,
        description="`url` is a `data:` URL that holds the file: pictures are not stored, they travel in the answer.",
    )
    background: Literal["auto", "opaque"] | None = Field(default=None, description="Pictures are opaque.")
    moderation: Literal["auto", "low"] | None = Field(
        default=None, description="Accepted and without effect: nothing is moderated."
    )
    user: str | None = Field(default=None, max_length=512, description="Accepted and not kept.")
    safety_identifier: str | None = Field(default=None, max_length=512, description="Accepted and not kept.")
    stream: bool | None = Field(default=None, description="Answer with server-sent events.")
    partial_images: int | None = Field(
        default=None,
        ge=0,
        le=MAX_PARTIAL_IMAGES,
        description="With `stream`: pictures of what it is becoming, evenly spread over its steps.",
    )


class ImagesRequest(Wishes, OpenAIFields):  # fields stand in the order of the last base first
    """OpenAI's fields, and those of `/v1/generate` that say what pictures may cost and how they are made."""

    negative_prompt: str | None = Field(
        default=None, max_length=32_000, description="What they should not show, where the model knows that."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "tulip", "n": 2, "size": "auto", "output_format": "webp"},
                {"prompt": "tulip", "quality": "low"},
                {"prompt": "tulip", "latency_ms": 20000, "seed": 7},
                {"prompt": "tulip", "stream": True, "partial_images": 2},
            ]
        }
    )


class InputTokensDetails(BaseModel):
    text_tokens: int
    image_tokens: int


class OutputTokensDetails(BaseModel):
    text_tokens: int = 0
    image_tokens: int


class Usage(BaseModel):
    """input_tokens: one, the class. output_tokens: latent tokens that carried the pictures, on average over the steps;
    at full budget as many as the pictures have image tokens. gflops, device_ms: what they cost, as in `elit`."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int
    gflops: float
    device_ms: float


class LinkedImage(ImageFacts):
    """The picture of `response_format` `url`."""

    url: str = Field(description="The file as `data:image/png;base64,...`, which needs no other request.")


class ImagesResponse(BaseModel):
    """quality: the best preset that the pictures are as good as. elit: what `/v1/generate` says of a request."""

    created: int = Field(description="Unix time in seconds.")
    data: list[GeneratedImage] | list[LinkedImage]
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: QualityPreset
    size: str
    usage: Usage
    elit: GenerateFacts


class PartialImageEvent(BaseModel):
    """What the picture promises to become, by the velocity of its last step."""

    type: Literal["image_generation.partial_image"] = "image_generation.partial_image"
    b64_json: Base64File
    partial_image_index: int = Field(description="From 0, of the previews of its picture.")
    seed: int = Field(description="Which picture it is of, where `n` asks for several.")
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: QualityPreset | Literal["auto"]
    size: str


class CompletedEvent(BaseModel):
    """A picture; of several, each has its own event when all are done. elit: what `/v1/generate` says of a request,
    with quality and cost of this picture."""

    type: Literal["image_generation.completed"] = "image_generation.completed"
    b64_json: Base64File
    created_at: int
    background: Literal["opaque"] = "opaque"
    output_format: OutputFormat
    quality: QualityPreset
    size: str
    usage: Usage
    seed: int
    level: int | float
    budget: float
    levels: list[int]
    strides: list[int]
    elit: GenerateFacts


class OpenAIErrorBody(BaseModel):
    """param: the field that is wrong. code: a stable name of what happened."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None
    code: str | None
    min_latency_ms: float | None = Field(default=None, description="The smallest target that would do, if that is it.")
    retry_after_ms: int | None = Field(default=None, description="When to come back, as in a problem document.")


class OpenAIError(BaseModel):
    error: OpenAIErrorBody
