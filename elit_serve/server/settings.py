"""What a server is started with. A bad value stops start-up and names its key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, ValidationError

from elit_serve.engine.config import Strict, WeightDtype
from elit_serve.engine.precision import Quantization
from elit_serve.errors import InvalidInput


class Settings(Strict):
    """All settings of `elit-serve serve`.

    random_weights: a preset served with random weights, at `resolution` pixels per side (256), to measure speed;
        excludes `model`.
    quantize: `fp8` runs the blocks' large matrix products in float8, on GPUs that have it.
    policy: `elastic` chooses levels between steps, and promises; `fixed` runs every request at its highest level.
    max_batch: the largest number of pictures in a step; None is what the device was measured with.
    max_queue: pictures that may wait for their first step; more are refused with 503.
    max_images: the largest `n` of a request.
    max_image_steps: the largest number of steps of a request, summed over its images; more work is refused with 422.
    max_body_bytes: a larger request body is refused with 413.
    soft_latency_ms: when a request without a target should be answered; None is three times what it takes alone at
        the highest level that it allows.
    response_ms: what HTTP adds to a picture's time beside the engine, both ways; counted in every prediction.
    drain_seconds: how long what was accepted may take to finish once the server is told to end.
    results: the folder of jobs: their pictures and, without `database`, their database. None is a folder that goes
        when the server ends; `serve` gives a lasting one to servers with a port of their own.
    database: where jobs are kept, as a URL: `postgresql://...`, or `sqlite:///FILE`.
    results_bytes, results_seconds: how much and how long the pictures of jobs are kept; the oldest go first.
    max_jobs: jobs that may wait outside the engine; more are refused with 503.
    webhook_hosts: where webhooks may go, each as HOST or HOST:PORT; by default nowhere.
    webhook_secret_file: holds the secret that webhooks are signed with, as `whsec_` and base64.
    arrival_log: a file that gets a line for every valid request, to be replayed; None is none.
    arrival_log_bytes: how large that file and its predecessor may be together.
    """

    model: str | None = None
    random_weights: str | None = None
    resolution: int | None = Field(default=None, ge=16, le=8192)
    host: str = Field(default="0.0.0.0", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    device: str | None = None
    dtype: WeightDtype | None = None
    quantize: Quantization | None = None
    threads: int | None = Field(default=None, ge=1)
    policy: Literal["elastic", "fixed"] = "elastic"
    max_batch: int | None = Field(default=None, ge=1)
    max_queue: int = Field(default=64, ge=1)
    max_images: int = Field(default=16, ge=1, le=1024)
    max_image_steps: int = Field(default=1000, ge=1)
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    soft_latency_ms: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    response_ms: float = Field(default=5, ge=0, allow_inf_nan=False)
    drain_seconds: float = Field(default=30, ge=0, allow_inf_nan=False)
    results: str | None = Field(default=None, min_length=1)
    database: str | None = Field(default=None, min_length=1)
    results_bytes: int = Field(default=1 << 30, ge=0)
    results_seconds: float = Field(default=86_400, gt=0, allow_inf_nan=False)
    max_jobs: int = Field(default=10_000, ge=1)
    webhook_hosts: tuple[str, ...] = ()
    webhook_secret_file: str | None = Field(default=None, min_length=1)
    arrival_log: str | None = Field(default=None, min_length=1)
    arrival_log_bytes: int = Field(default=64 << 20, ge=4096)
    log_level: Literal["debug", "info", "warning", "error"] = "warning"


def read_settings(values: Mapping[str, object]) -> Settings:
    """Settings from what a caller gives; the rest is as above."""
    try:
        return Settings.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        allowed = f"settings are {', '.join(Settings.model_fields)}" if first["type"] == "extra_forbidden" else None
        raise InvalidInput(field, first["input"], allowed or _lowered(first["msg"])) from None


def _lowered(message: str) -> str:
    return message[:1].lower() + message[1:]
