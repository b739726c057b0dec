"""Jobs as they look from outside."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elit_serve.errors import StoreUnavailable
from elit_serve.http.problems import Problem
from elit_serve.http.schemas import (
    Base64File,
    GenerateFacts,
    GenerateRequest,
    GenerateResponse,
    ImageFacts,
    RequestBody,
)
from elit_serve.jobs.states import JobState, StoredJob
from elit_serve.plans.formats import AnswerFormat

MAX_PREVIEWS = 3
PREFIX = "/v1/jobs"

T = TypeVar("T", bound=BaseModel)


class WebhookRequest(RequestBody):
    """Who is told of the end."""

    url: str = Field(max_length=2000, description="On one of the hosts that the server allows.")


class JobRequest(GenerateRequest):
    """What `/v1/generate` takes, and what only jobs have."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"label": "tulip", "n": 4, "seed": 7},
                {"label": "daisy", "previews": 3, "webhook": {"url": "https://example.org/pictures"}},
            ]
        }
    )

    priority: Literal["interactive", "batch"] = Field(
        default="batch",
        description="`batch` yields to `interactive`, which a job with `latency_ms` is unless it says so.",
    )
    previews: int = Field(
        default=0, ge=0, le=MAX_PREVIEWS, description="Of each picture while it is made, for those who follow the job."
    )
    webhook: WebhookRequest | None = None

    def as_asked(self) -> JobRequest:
        """With the priority of a promise, if it asks for one and says nothing."""
        if self.latency_ms is None or "priority" in self.model_fields_set:
            return self
        return self.model_copy(update={"priority": "interactive"})


class JobImage(ImageFacts):
    """A picture of a job that is done."""

    url: str = Field(
        description="Where the file is, while it is kept: a path on this server, and in a webhook without what a proxy "
        "puts before it."
    )
    num_bytes: int


class JobResult(GenerateFacts):
    """What was done; times count from when the engine took the job, or from its arrival if it has `latency_ms`."""

    images: list[JobImage]


class JobInfo(BaseModel):
    """A job as it is now."""

    id: str
    object: Literal["job"] = "job"
    state: JobState
    created_at: datetime
    started_at: datetime | None = Field(description="When its first step had run.")
    ended_at: datetime | None
    files: Literal["none", "kept", "gone"] = Field(description="`none` until it is done, `gone` when they expired.")
    expires_at: datetime | None = Field(description="When its files go at the latest.")
    request: dict[str, Any] = Field(description="As it was asked for, with the seed.")
    result: JobResult | None
    error: Problem | None

    def below(self, prefix: str) -> JobInfo:
        """With the addresses of its pictures as whoever reaches the server under `prefix` needs them."""
        if not prefix or self.result is None:
            return self
        images = [image.model_copy(update={"url": prefix + image.url}) for image in self.result.images]
        return self.model_copy(update={"result": self.result.model_copy(update={"images": images})})


class JobList(BaseModel):
    """The newest first."""

    object: Literal["list"] = "list"
    data: list[JobInfo]
    next_cursor: str | None = Field(description="For `cursor`, to get those that follow; null at the end.")


class JobStarted(BaseModel):
    """The event `started`."""

    id: str


class JobStep(BaseModel):
    """The event `step`. step: how many of the `steps` of its plan's time grid are done: a long step is several."""

    seed: int
    step: int
    steps: int
    level: int


class JobPreview(BaseModel):
    """The event `preview`: a file as of a finished picture."""

    seed: int
    index: int
    step: int
    output_format: AnswerFormat
    b64_json: Base64File


def read_back(schema: type[T], text: str) -> T:
    """What was stored as JSON. Raises `StoreUnavailable` if it is not what was stored, as in a damaged file."""
    try:
        return schema.model_validate_json(text)
    except ValidationError as error:
        raise StoreUnavailable("what is stored of the job is damaged") from error


def job_info(job: StoredJob, *, results_seconds: float) -> JobInfo:
    files: Literal["none", "kept", "gone"] = "none"
    if job.state is JobState.DONE:
        files = "kept" if job.result_bytes else "gone"
    expires_s = job.ended_s + results_seconds if job.ended_s is not None and files == "kept" else None
    request = read_back(JobRequest, job.request)
    return JobInfo(
        id=job.id,
        state=job.state,
        created_at=_moment(job.created_s),
        started_at=None if job.started_s is None else _moment(job.started_s),
        ended_at=None if job.ended_s is None else _moment(job.ended_s),
        files=files,
        expires_at=None if expires_s is None else _moment(expires_s),
        request=request.model_dump(mode="json", exclude_unset=True),
        result=None if job.result is None else read_back(JobResult, job.result),
        error=None if job.error is None else read_back(Problem, job.error),
    )


def job_result(job_id: str, facts: GenerateResponse) -> JobResult:
    """The answer of `/v1/generate` with addresses in place of the files."""
    images = [
        JobImage(
            url=f"{PREFIX}/{job_id}/images/{index}",
            num_bytes=len(image.b64_json),
            **image.model_dump(include=set(ImageFacts.model_fields)),
        )
        for index, image in enumerate(facts.images)
    ]
    return JobResult(images=images, **facts.model_dump(include=set(GenerateFacts.model_fields)))


def _moment(unix_s: float) -> datetime:
    return datetime.fromtimestamp(unix_s, UTC)
