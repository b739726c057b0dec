"""What a caller may say; fields that are left out or None are the server's choice, and are not sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypedDict


class GuidanceOptions(TypedDict, total=False):
    """What is left out is the model's recommendation."""

    method: Literal["none", "cfg", "ag", "ccfg"]
    scale: float
    weak_budget: float | None
    interval: Sequence[float]


class SkipsOptions(TypedDict, total=False):
    """Steps, numbered from 0, that use again what earlier ones computed: their cores, or their weak passes."""

    core: Sequence[int]
    weak: Sequence[int]


class Wishes(TypedDict, total=False):
    """What a picture is of, what it may cost, when it must be there, and how it is made.

    label: a class name or id; or prompt: any words, or of a model of classes exactly a class name.
    negative_prompt: what it should not show, where the model knows that.
    latency_ms: when the answer must be there. budget, min_budget, max_budget: shares of the latents in (0, 1].
    min_quality: no picture is worth less by the model's measurements, as `quality` of answers tells it.
    levels, strides: a level for every step, and how many steps of the time grid each is, as an answer reports them:
    they make the same picture again; skips likewise.
    size: one of the model's `sizes`, as "640x384".
    output_format: png, webp or jpeg.
    output_compression: of jpeg and webp, 0 to 100, which is the largest and best file.
    """

    label: str | int | None
    prompt: str | None
    negative_prompt: str | None
    seed: int | None
    latency_ms: float | None
    budget: float | None
    min_budget: float | None
    max_budget: float | None
    min_quality: float | None
    best_effort: bool | None
    priority: Literal["interactive", "batch"] | None
    levels: Sequence[int] | None
    strides: Sequence[int] | None
    steps: int | None
    guidance: GuidanceOptions | None
    skips: SkipsOptions | Mapping[str, Sequence[int]] | None
    size: str | None
    output_format: str | None
    output_compression: int | None


class PlanOptions(Wishes, total=False):
    """Of a dry run. n: pictures, of seeds seed, seed + 1, ..."""

    n: int | None


class GenerateOptions(PlanOptions, total=False):
    """Of pictures. accept: the media type wanted, JSON by default; a picture's or a latent's own type gives the file
    without base64 around it. request_id: of one's own, for `finish`."""

    accept: str | None
    request_id: str | None


class StreamOptions(Wishes, total=False):
    """Of one picture that is shown while it is made. partial_images: how many previews of it, up to 3. request_id: of
    one's own, for `finish`."""

    partial_images: int | None
    request_id: str | None


class JobWebhook(TypedDict):
    """Who is told of the end: an address on a host that the server allows."""

    url: str


class JobOptions(PlanOptions, total=False):
    """Of pictures that are made later. previews: how many of each picture its followers get, up to 3."""

    previews: int | None
    webhook: JobWebhook | None
