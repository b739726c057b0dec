"""What happens to a job that the engine has, or was to have, and how the job ends by it."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from elit_serve.errors import DeadlineExceeded, ElitError, EngineStopped, GenerationFailed
from elit_serve.http.faults import fault_of
from elit_serve.http.problems import problem_json
from elit_serve.jobs.port import PicturePort, PicturesUnderWay
from elit_serve.jobs.schemas import job_result
from elit_serve.jobs.states import JobState, StoredJob

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """Its first step has run."""

    job_id: str


@dataclass(frozen=True)
class Settled:
    """The engine has done with it. job: as it was before the engine got it."""

    job: StoredJob
    submitted: PicturesUnderWay


@dataclass(frozen=True)
class Cancelled:
    """It had been cancelled, which is stored."""

    job_id: str


@dataclass(frozen=True)
class Interrupted:
    """The engine did not make it, and the next one may. attempts: see `StoredJob`; None leaves them as they are."""

    job_id: str
    attempts: int | None


@dataclass(frozen=True, kw_only=True)
class JobEnd:
    """An end that is to be stored. result, error: see `StoredJob`. files: its pictures, in a format of this suffix."""

    job_id: str
    state: JobState
    result: str | None = None
    error: str | None = None
    files: tuple[bytes, ...] = ()
    suffix: str = ""


Report = Started | Settled | Cancelled | Interrupted | JobEnd


def ending_of(settled: Settled, port: PicturePort) -> JobEnd | Cancelled | Interrupted:
    """To be called once."""
    job = settled.job
    try:
        made = settled.submitted.answer()
        if made is None:
            return Cancelled(job.id)
        return JobEnd(
            job_id=job.id,
            state=JobState.DONE,
            result=job_result(job.id, made).model_dump_json(),
            files=tuple(image.b64_json for image in made.images),
            suffix=made.output_format,
        )
    except EngineStopped:  # if it died, this job may have been to blame
        return Interrupted(job.id, None if port.has_died else job.attempts)
    except ElitError as error:
        return failure(job.id, error)
    except Exception as error:
        return surprise(job.id, error)


def failure(job_id: str, error: ElitError) -> JobEnd:
    state = JobState.EXPIRED if isinstance(error, DeadlineExceeded) else JobState.FAILED
    return JobEnd(job_id=job_id, state=state, error=problem_json(fault_of(error)))


def surprise(job_id: str, error: Exception) -> JobEnd:
    """The job ends by a fault of ours, and no others with it."""
    logger.error("job %s could not be made", job_id, exc_info=error)
    return failure(job_id, GenerationFailed(f"the server failed with {type(error).__name__}"))
