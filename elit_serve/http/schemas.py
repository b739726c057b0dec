"""Requests for pictures and their answers as they look from outside."""

from __future__ import annotations

import base64
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from elit_serve.plans.bounds import MAX_PROMPT, MAX_SEED, MAX_STEPS
from elit_serve.plans.formats import AnswerFormat
from elit_serve.plans.guidance import GuidanceMethod

Share = Annotated[float, Field(gt=0, le=1)]


def _in_base64(file: bytes) -> str:
    return base64.b64encode(file).decode("ascii")


# Turned into text only when JSON is written: a bare answer never needs it, and 262 KB take a millisecond.
Base64File = Annotated[bytes, PlainSerializer(_in_base64, return_type=str, when_used="json")]

MAX_LATENCY_MS = 3_600_000
RANDOM_SEEDS = 1 << 32  # of a request that has none; small enough for a client that reads numbers as doubles


class RequestBody(BaseModel):
    """Unknown fields are errors, and a number is never read from text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class GuidanceRequest(RequestBody):
    """What is left out is the model's recommendation."""

    method: GuidanceMethod | None = Field(
        default=None,
        description="`ccfg` and `cfg` drop the class or prompt, `ag` keeps it; `ccfg` and `ag` run a cheaper pass.",
    )
    scale: float | None = Field(default=None, ge=1, le=100, description="1 is off.")
    weak_budget: float | None = Field(default=None, gt=0, le=1, description="Budget of the weak pass of ccfg and ag.")
    interval: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        default=None, min_length=2, max_length=2, description="Guide only at times within [start, end]; noise is 0."
    )


StepNumbers = Annotated[list[Annotated[int, Field(ge=1, lt=MAX_STEPS)]], Field(max_length=MAX_STEPS)]


class SkipsRequest(RequestBody):
    """Steps, numbered from 0, that use again what earlier ones computed."""

    core: StepNumbers = Field(default=[], description="No core runs: what it changed last is added instead.")
    weak: StepNumbers = Field(default=[], description="Guided without a weak pass, by how far both were apart last.")


class Subject(RequestBody):
    """What the pictures show, how many there are, and who makes them."""

    model: str | None = Field(default=None, max_length=200, description="One of `/v1/models`; the first if left out.")

    label: Annotated[str, Field(max_length=200)] | int | None = Field(
        default=None, description="A class name or a class id, of a model of classes; give this or `prompt`."
    )
    prompt: str | None = Field(
        default=None,
        max_length=MAX_PROMPT,
        description="What the pictures show, in any words; of a model of classes a class name and nothing else.",
    )
    negative_prompt: str | None = Field(
        default=None, max_length=MAX_PROMPT, description="What they should not show, where the model knows that."
    )
    n: int = Field(default=1, ge=1, description="Pictures, with seeds seed, seed + 1, ...; taken all or none.")


class Wishes(RequestBody):
    """What pictures may cost, when they must be there, and how they are made."""

    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Drawn and reported when left out.")
    latency_ms: float | None = Field(
        default=None,
        gt=0,
        le=MAX_LATENCY_MS,
        description="When the answer must be there: promised or refused at once. Levels are chosen, and chosen again "
        "between steps, so that it holds.",
    )
    best_effort: bool = Field(
        default=False, description="`latency_ms` is a wish: never refused for it, and answered late rather than never."
    )
    budget: Share | None = Field(default=None, description="Share of the latents to use; never changed.")
    min_budget: Share | None = Field(default=None, description="No less is used, also under load.")
    max_budget: Share | None = Field(default=None, description="No more is used, also on an idle server.")
    min_quality: Share | None = Field(
        default=None,
        description="No picture is worth less by the model's measurements, also under load: as `quality` of answers.",
    )
    levels: list[Annotated[int, Field(ge=1)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_STEPS,
        description="A level for every step, as an answer reports it: makes the same picture again.",
    )
    strides: list[Annotated[int, Field(ge=1, le=MAX_STEPS)]] | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_STEPS,
        description="Beside `levels`, as an answer reports it: how many steps of the plan's time grid each step is.",
    )
    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS, description="Denoising steps.")
    skips: SkipsRequest | None = Field(
        default=None, description="What steps use again of earlier ones, as an answer reports it."
    )
    size: str | None = Field(
        default=None,
        max_length=40,
        description="WIDTHxHEIGHT, as `64x64`: one of the model's `sizes`. `auto`, or left out, is the first of them.",
    )
    guidance: GuidanceRequest = GuidanceRequest()
    priority: Literal["interactive", "batch"] = Field(
        default="interactive", description="`batch` yields to `interactive`, but is never left waiting for ever."
    )


class GenerateRequest(Wishes, Subject):  # fields stand in the order of the last base first
    """One request for `n` pictures of a class, or of what a prompt says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"label": "tulip", "budget": 0.25, "seed": 7},
                {"label": "tulip", "latency_ms": 20000, "min_budget": 0.1, "n": 2, "output_format": "webp"},
            ]
        }
    )

    output_format: AnswerFormat | None = Field(
        default=None,
        description="png when left out. A model without an autoencoder answers with its latent, as safetensors.",
    )
    output_compression: int | None = Field(
        default=None,
        ge=0,
        le=100,
        description="Of jpeg and webp: 100 is the largest and best file, 95 when left out. Others lose nothing.",
    )


class GuidanceUsed(BaseModel):
    """A request may repeat it as it is. weak_budget is null where there is no weaker pass."""

    method: GuidanceMethod
    scale: float
    weak_budget: float | None
    interval: list[float] = Field(min_length=2, max_length=2)


class SkipsUsed(BaseModel):
    """A request may repeat it as it is. Steps are numbered from 0."""

    core: list[int] = Field(description="Steps that ran no core.")
    weak: list[int] = Field(description="Guided steps that ran no weak pass.")


class ImageFile(BaseModel):
    b64_json: Base64File = Field(description="The file in base64; its metadata holds the same facts.")


class ImageFacts(BaseModel):
    seed: int
    level: int | float
    budget: float
    levels: list[int]
    strides: list[int] = Field(
        default=[],
        description="How many steps of the plan's time grid each step was, `steps` together: above 1 under load. Empty "
        "of a job from before it was told.",
    )
    quality: float | None = Field(
        description="Measured, the mean over the steps of what their levels are worth; null without measurements."
    )
    queue_ms: float = Field(description="From arrival to the first step.")
    compute_ms: float = Field(description="From the first step to the end of the last, waits between them included.")
    encode_ms: float = Field(description="From there to the file: decoding, transfer, encoding.")
    gflops: float = Field(description="What its steps computed, in 10^9 floating-point operations, both passes.")
    device_ms: float = Field(
        description="Its share of the device's time: of every launch that it was in, decoding included, as measured."
    )


class GeneratedImage(ImageFacts, ImageFile):
    """level is the mean over the steps, budget the share of the latents that it is, levels one per step
    that was run."""


class GenerateFacts(BaseModel):
    """What was done for a request, beside its pictures."""

    model: str
    model_hash: str
    dtype: str = Field(description="What the model computed in; `fp8` if it is quantised.")
    simulated: str | None = Field(
        default=None,
        description="The device whose time was taken instead of computing: then pictures are placeholders. Null of "
        "pictures that were made.",
    )
    label: str | None = Field(default=None, description="Null of a model of prompts.")
    class_id: int | None = None
    prompt: str | None = Field(default=None, description="Null of a model of classes.")
    negative_prompt: str | None = None
    output_format: AnswerFormat
    size: str | None = Field(
        default=None, description="Of the pictures, as WIDTHxHEIGHT; null of a job from before it was told."
    )
    steps: int = Field(description="Of the plan's time grid; under load a picture may be made in fewer, longer ones.")
    guidance: GuidanceUsed
    skips: SkipsUsed | None = Field(default=None, description="What steps used again of earlier ones; null is nothing.")
    priority: Literal["interactive", "batch"]
    latency_ms: float | None = Field(description="The target as it was asked for.")
    promised: bool = Field(description="Whether the target was promised; a wish or no target is not.")
    deadline_met: bool | None = Field(description="None without a target.")
    finished_early: bool = Field(description="Whether its caller had it finished early.")
    queue_ms: float = Field(description="From arrival to the first step of the first picture.")
    compute_ms: float = Field(description="From there to the end of the last picture's last step.")
    encode_ms: float = Field(description="From there to the last file.")
    total_ms: float = Field(description="From arrival to the answer.")
    gflops: float = Field(description="What the steps of all its pictures computed, in 10^9 operations.")
    device_ms: float = Field(description="The share of the device's time that all its pictures had.")
    quality: float | None = Field(description="Of what was done: the mean of its pictures.")
    expected_quality: float | None = Field(
        description="Of the plan when it was chosen, in (0, 1]; 1 is as close to photographs as unseen ones are, or "
        "as good as the `full_plan` that `quality` of `GET /v1/models` names, where there were none."
    )
    quality_size: str | None = Field(
        default=None,
        description="The size of the pictures whose quality was measured: where `size` is another, every quality here "
        "is what such a plan was worth at that one. Null without measurements.",
    )


class GenerateResponse(GenerateFacts):
    """The pictures, and what was done to make them."""

    images: list[GeneratedImage]
