"""What a server answers of jobs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from pydantic import Field, ValidationError

from elit_serve.client.answers import Answer, File, GenerationFacts, ImageFacts
from elit_serve.client.event_stream import Event
from elit_serve.client.replies import Reply, not_ours

ENDED = frozenset({"done", "failed", "expired", "cancelled"})


class JobImage(ImageFacts):
    """A picture of a job that is done; `jobs.image` gets its file."""

    url: str
    num_bytes: int


class JobResult(GenerationFacts):
    """What was done. Times count from when the engine took the job, or from its arrival if it has `latency_ms`."""

    images: tuple[JobImage, ...]


class JobError(Answer):
    """Why a job failed or expired, as its problem document tells it."""

    status: int
    title: str = ""
    detail: str = ""
    reason: str | None = None


class Job(Answer):
    """A job as it is at one moment.

    files: `none` until it is done, `gone` when they have been removed; expires_at: when they are at the latest.
    request: as it was asked for, with its seed. result: of a job that is done. error: of one that failed or expired.
    """

    id: str
    state: Literal["queued", "running", "done", "failed", "expired", "cancelled"]
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    files: str = "none"
    expires_at: datetime | None = None
    request: Mapping[str, Any] = {}
    result: JobResult | None = None
    error: JobError | None = None

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED


class JobPage(Answer):
    data: tuple[Job, ...]
    next_cursor: str | None = None


class JobStarted(Answer):
    """Its first step has run."""

    id: str


class JobStep(Answer):
    """A step of one of its pictures. step: how many of its `steps` are done; a long one is several."""

    seed: int
    step: int
    steps: int
    level: int


class JobPreview(Answer):
    """What one of its pictures promises to become, after a step."""

    seed: int
    index: int
    step: int
    output_format: str = ""
    data: File = Field(alias="b64_json", repr=False)


JobEvent = Job | JobStarted | JobStep | JobPreview

_KINDS: dict[str, type[JobStarted | JobStep | JobPreview]] = {
    "started": JobStarted,
    "step": JobStep,
    "preview": JobPreview,
}


def job_event(reply: Reply, event: Event) -> JobEvent:
    """`queued` and the last event hold the whole job."""
    try:
        return _KINDS.get(event.name, Job).model_validate_json(event.data)
    except ValidationError as error:
        raise not_ours(reply, error) from None
