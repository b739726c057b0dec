"""Every request of a client, before any HTTP library has it: where it goes, what it says, whether it may be sent twice,
and what its answer means."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote, urlencode

from elit_serve.client.answers import Generation, Health, Model, ModelList, PartialImage, Plan
from elit_serve.client.event_stream import Event
from elit_serve.client.job_answers import Job, JobEvent, JobPage, job_event
from elit_serve.client.options import GenerateOptions, JobOptions, PlanOptions, StreamOptions
from elit_serve.client.replies import JSON, REQUEST_ID, Reply, generation, parsed, streamed
from elit_serve.errors import InvalidInput

T = TypeVar("T")

EVENTS = "text/event-stream"
SANE_ID = re.compile("[A-Za-z0-9._-]{1,128}")  # of a request
JOBS = "/v1/jobs"
JOBS_PER_PAGE = 100  # where none is asked for: as many as a server gives


@dataclass(frozen=True, kw_only=True)
class HttpRequest:
    """headers: beyond those of every request.

    is_repeatable: sent twice, it does no more than once. One whose answer got lost may then be sent again.
    waits: a server that is busy or down may be asked again later; where that is the answer, it may not.
    """

    method: Literal["GET", "POST", "DELETE"] = "GET"
    path: str
    body: Mapping[str, object] | None = None
    headers: Mapping[str, str] | None = None
    is_repeatable: bool = True
    waits: bool = True


@dataclass(frozen=True, kw_only=True)
class AnswerRequest(HttpRequest, Generic[T]):
    """read: what a successful answer means."""

    read: Callable[[Reply], T]


@dataclass(frozen=True, kw_only=True)
class StreamRequest(HttpRequest, Generic[T]):
    """read: what an event of the stream means, given the head of the answer. is_last: whether that is the end.

    resumes: the server goes on after the last event that was seen, on another connection.
    """

    read: Callable[[Reply, Event], T]
    is_last: Callable[[T], bool]
    resumes: bool = False

    def after(self, event_id: str | None) -> StreamRequest[T]:
        """For what comes after the event of this id."""
        seen = {} if event_id is None else {"Last-Event-ID": event_id}
        return replace(self, headers={**(self.headers or {}), **seen})


def generate(options: GenerateOptions) -> AnswerRequest[Generation]:
    fields = _given(options)
    named = _named(fields)
    accept = str(fields.pop("accept", JSON))
    return AnswerRequest(
        method="POST",
        path="/v1/generate",
        body=fields,
        headers={"Accept": accept, **named},
        is_repeatable="seed" in fields,  # without one, the lost pictures cannot be had again
        read=generation,
    )


def stream(options: StreamOptions) -> StreamRequest[PartialImage | Generation]:
    """OpenAI's route, where a class id is a prompt too."""
    fields = _given(options)
    named = _named(fields)
    label = fields.pop("label", None)
    if label is not None and "prompt" in fields:
        raise InvalidInput("prompt", fields["prompt"], "a label is given; leave one of them out")
    subject = {} if label is None else {"prompt": str(label)}
    return StreamRequest(
        method="POST",
        path="/v1/images/generations",
        body={**fields, **subject, "stream": True},
        headers={"Accept": EVENTS, **named},
        is_repeatable="seed" in fields,
        read=streamed,
        is_last=lambda told: isinstance(told, Generation),
    )


def finish(request_id: str) -> AnswerRequest[None]:
    return AnswerRequest(method="POST", path=f"/v1/requests/{quote(request_id, safe='')}/finish", read=lambda _: None)


def plan(options: PlanOptions) -> AnswerRequest[Plan]:
    return AnswerRequest(method="POST", path="/v1/plan", body=_given(options), read=lambda reply: parsed(Plan, reply))


def models() -> AnswerRequest[tuple[Model, ...]]:
    return AnswerRequest(path="/v1/models", read=lambda reply: parsed(ModelList, reply).data)


def health() -> AnswerRequest[Health]:
    return AnswerRequest(path="/health", waits=False, read=lambda reply: parsed(Health, reply))


def metrics() -> AnswerRequest[str]:
    return AnswerRequest(path="/metrics", read=lambda reply: reply.content.decode())


def readiness() -> AnswerRequest[bool]:
    return AnswerRequest(path="/readiness", waits=False, read=lambda _: True)


def create_job(options: JobOptions, idempotency_key: str | None) -> AnswerRequest[Job]:
    """With a key, a job is stored once however often it is sent."""
    headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
    return AnswerRequest(method="POST", path=JOBS, body=_given(options), headers=headers, read=_job)


def get_job(job_id: str) -> AnswerRequest[Job]:
    return AnswerRequest(path=_job_path(job_id), read=_job)


def cancel_job(job_id: str) -> AnswerRequest[Job]:
    return AnswerRequest(method="DELETE", path=_job_path(job_id), read=_job)


def finish_job(job_id: str) -> AnswerRequest[Job]:
    return AnswerRequest(method="POST", path=f"{_job_path(job_id)}/finish", read=_job)


def job_page(state: str | None, limit: int, cursor: str | None) -> AnswerRequest[JobPage]:
    query = urlencode(_given({"state": state, "cursor": cursor, "limit": limit}))
    return AnswerRequest(path=f"{JOBS}?{query}", read=lambda reply: parsed(JobPage, reply))


def job_image(job_id: str, index: int) -> AnswerRequest[bytes]:
    return AnswerRequest(path=f"{_job_path(job_id)}/images/{index}", read=lambda reply: reply.content)


def job_events(job_id: str) -> StreamRequest[JobEvent]:
    return StreamRequest(
        path=f"{_job_path(job_id)}/events",
        headers={"Accept": EVENTS},
        read=job_event,
        is_last=lambda told: isinstance(told, Job) and told.has_ended,
        resumes=True,
    )


def _job(reply: Reply) -> Job:
    return parsed(Job, reply)


def _job_path(job_id: str) -> str:
    return f"{JOBS}/{quote(job_id, safe='')}"


def _named(fields: dict[str, Any]) -> dict[str, str]:
    """The header for the id that the caller has chosen, which is taken out of the fields. A server would give others to
    such as it does not take."""
    request_id = fields.pop("request_id", None)
    if request_id is None:
        return {}
    if not SANE_ID.fullmatch(str(request_id)):
        raise InvalidInput("request_id", request_id, "1 to 128 letters, digits, '.', '_' and '-'")
    return {REQUEST_ID: str(request_id)}


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}
