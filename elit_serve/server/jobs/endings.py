"""What the engine tells of a job, and how the job ends by it."""

from __future__ import annotations

from dataclasses import dataclass

from elit_serve.errors import DeadlineExceeded, ElitError, EngineStopped
from elit_serve.server.faults import fault_of
from elit_serve.server.jobs.schemas import job_result
from elit_serve.server.jobs.states import JobState
from elit_serve.server.problems import problem_json
from elit_serve.server.service import Service, Taken, facts_of


@dataclass(frozen=True)
class Started:
    """Its first step has run."""

    job_id: str


@dataclass(frozen=True)
class Settled:
    """The engine has done with it."""

    job_id: str
    taken: Taken


@dataclass(frozen=True)
class Interrupted:
    """The engine has ended before it."""

    job_id: str


@dataclass(frozen=True, kw_only=True)
class Ending:
    """An end that is to be stored. result, error: see `StoredJob`. files: its pictures, in a format of this suffix."""

    job_id: str
    state: JobState
    result: str | None = None
    error: str | None = None
    files: tuple[bytes, ...] = ()
    suffix: str = ""


def ending_of(settled: Settled, service: Service) -> Ending | Interrupted | None:
    """Counts and traces it, too. None if it was cancelled, which is stored."""
    taken = settled.taken
    if service.tracing is not None:
        service.tracing.job_ended(settled.job_id, taken)
    if taken.future.cancelled():
        service.metrics.generations.labels("cancelled").inc()
        return None
    try:
        facts = facts_of(service, taken, taken.future.result())
    except EngineStopped:
        return Interrupted(settled.job_id)
    except ElitError as error:
        service.metrics.ended(error)
        return failure(settled.job_id, error)
    return Ending(
        job_id=settled.job_id,
        state=JobState.DONE,
        result=job_result(settled.job_id, facts).model_dump_json(),
        files=tuple(image.b64_json for image in facts.images),
        suffix=taken.form.output_format,
    )


def failure(job_id: str, error: ElitError) -> Ending:
    state = JobState.EXPIRED if isinstance(error, DeadlineExceeded) else JobState.FAILED
    return Ending(job_id=job_id, state=state, error=problem_json(fault_of(error)))
