"""Requests before any HTTP library has them: where they go, what they say, and whether they may be sent twice."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode

import httpx

from elit_serve.client.options import GenerateOptions, JobOptions, PlanOptions, StreamOptions
from elit_serve.errors import InvalidInput

JSON = "application/json"
EVENTS = "text/event-stream"
TIMEOUT_S = 600.0  # of an answer: a picture may wait in a queue for long
CONNECT_TIMEOUT_S = 10.0
JOBS = "/v1/jobs"
JOBS_PER_PAGE = 100  # where none is asked for: as many as a server gives


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request.

    headers: beyond those of every request.
    is_repeatable: sent twice, it does no more than once. One whose answer got lost may then be sent again.
    waits: a server that is busy or down may be asked again later; where that is the answer, it may not.
    """

    method: Literal["GET", "POST", "DELETE"] = "GET"
    path: str
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] | None = None
    is_repeatable: bool = True
    waits: bool = True


MODELS = Call(path="/v1/models")
HEALTH = Call(path="/health", waits=False)
READINESS = Call(path="/readiness", waits=False)
METRICS = Call(path="/metrics")


def generate_call(options: GenerateOptions) -> Call:
    fields = _given(options)
    accept = str(fields.pop("accept", JSON))
    return Call(
        method="POST",
        path="/v1/generate",
        body=fields,
        headers={"Accept": accept},
        is_repeatable="seed" in fields,  # without one, the lost pictures cannot be had again
    )


def plan_call(options: PlanOptions) -> Call:
    return Call(method="POST", path="/v1/plan", body=_given(options))


def stream_call(options: StreamOptions) -> Call:
    """OpenAI's route, where a class id is a prompt too."""
    fields = _given(options)
    label = fields.pop("label", None)
    if label is not None and "prompt" in fields:
        raise InvalidInput("prompt", fields["prompt"], "a label is given; leave one of them out")
    subject = {} if label is None else {"prompt": str(label)}
    return Call(
        method="POST",
        path="/v1/images/generations",
        body={**fields, **subject, "stream": True},
        headers={"Accept": EVENTS},
        is_repeatable="seed" in fields,
    )


def job_call(options: JobOptions, idempotency_key: str | None) -> Call:
    """With a key, a job is stored once however often it is sent."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return Call(method="POST", path=JOBS, body=_given(options), headers=headers)


def jobs_page_call(state: str | None, limit: int, cursor: str | None) -> Call:
    query = urlencode(_given({"state": state, "cursor": cursor, "limit": limit}))
    return Call(path=f"{JOBS}?{query}")


def one_job_call(job_id: str, *, method: Literal["GET", "DELETE"] = "GET") -> Call:
    return Call(method=method, path=_job_path(job_id))


def job_image_call(job_id: str, index: int) -> Call:
    return Call(path=f"{_job_path(job_id)}/images/{index}")


def job_events_call(job_id: str, last_event_id: str | None) -> Call:
    after = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    return Call(path=f"{_job_path(job_id)}/events", headers={"Accept": EVENTS, **after})


def _job_path(job_id: str) -> str:
    return f"{JOBS}/{quote(job_id, safe='')}"


def base_url(text: str) -> str:
    """A server's address without the slash that a path begins with."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput("url", text, "an address such as http://127.0.0.1:8000")
    return str(url).rstrip("/")


def key_headers(api_key: str | None) -> dict[str, str]:
    """What every request of a holder of this key says. A key that HTTP cannot carry is refused, and not shown."""
    if api_key is None:
        return {}
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise InvalidInput("api_key", "what was given", "printable ASCII without spaces around it")
    return {"Authorization": f"Bearer {api_key}"}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
