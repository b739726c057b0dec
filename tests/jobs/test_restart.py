"""What a server finds that another has left: by being killed, or with other settings."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from elit_serve.engine.executor.slots import Executor, RunningStep
from elit_serve.engine.picture import Picture
from elit_serve.errors import ResultsGone
from elit_serve.jobs.database import Database
from elit_serve.jobs.results import Results
from elit_serve.jobs.retention import Retention
from elit_serve.jobs.runner import MAX_ATTEMPTS
from elit_serve.jobs.states import JobState, StoredJob, new_id
from elit_serve.jobs.store import JobStore
from elit_serve.plans.step_kind import StepKind
from elit_serve.server.settings import Settings

Leave = Callable[..., dict[str, Any]]


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Writes a job into the database of `tmp_path`, as a server that is killed leaves it."""

    def leave(
        state: JobState, *, age_s: float = 0, due_s: float | None = None, attempts: int = 0, **body: Any
    ) -> dict[str, Any]:
        created_s = time.time() - age_s
        job = StoredJob(
            id=new_id(created_s),
            owner="",
            idempotency_key=None,
            fingerprint="",
            state=state,
            request=json.dumps({"label": "tulip", "seed": 7, **body}),
            num_images=1,
            created_s=created_s,
            due_s=due_s,
            attempts=attempts,
        )
        with closing(Database.open(None, tmp_path)) as database:
            JobStore(database).add(job)
        return {"id": job.id}

    return leave


def stored(job: dict[str, Any], folder: Path) -> StoredJob:
    with closing(sqlite3.connect(folder / "jobs.sqlite3")) as connection:
        connection.row_factory = sqlite3.Row
        row = connection.execute("SELECT * FROM elit_jobs WHERE id = ?", [job["id"]]).fetchone()
    return StoredJob(**{**row, "state": JobState(row["state"])})


def test_what_was_begun_is_made_from_the_start(start_server: Any, jobs_of: Any, leave: Leave, tmp_path: Path) -> None:
    begun, queued = leave(JobState.RUNNING, budget=0.5), leave(JobState.QUEUED, budget=1)
    server = start_server(settings=Settings(response_ms=0, results=str(tmp_path)))
    jobs = jobs_of(server)
    for job, budget in ((begun, 0.5), (queued, 1.0)):
        assert jobs.ended(job)["state"] == "done"
        assert jobs.picture(job).content == server.pipeline.generate("tulip", budget=budget, seed=7).encode()


def test_a_job_at_which_servers_ended_too_often_fails(
    start_server: Any, jobs_of: Any, leave: Leave, tmp_path: Path
) -> None:
    fatal = leave(JobState.RUNNING, attempts=MAX_ATTEMPTS)
    unlucky = leave(JobState.QUEUED, attempts=MAX_ATTEMPTS - 1)  # it ended before the first step
    jobs = jobs_of(start_server(settings=Settings(response_ms=0, results=str(tmp_path))))
    failed = jobs.ended(fatal)
    assert failed["state"] == "failed"
    assert failed["error"]["type"] == "urn:elit-serve:generation-failed"
    assert failed["error"]["detail"] == f"the server ended {MAX_ATTEMPTS} times while it was made"
    assert jobs.ended(unlucky)["state"] == "done"


class Lost(Executor):
    """Its device is lost at the first step."""

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return super().launch(pictures, kind)


@pytest.mark.parametrize("body", [{}, {"latency_ms": 60_000}], ids=["waiting", "promised"])
def test_attempts_are_counted_before_the_first_step(
    start_server: Any, jobs_of: Any, eventually: Any, tmp_path: Path, body: dict[str, Any]
) -> None:
    server = start_server(executor=Lost, settings=Settings(response_ms=0, results=str(tmp_path)))
    job = jobs_of(server).accepted(**body)
    eventually(lambda: not server.worker.is_alive)
    server.app.state.jobs.stop()
    assert stored(job, tmp_path).attempts == 1


def test_an_end_in_good_order_is_no_attempt(
    start_server: Any, jobs_of: Any, stepwise: Any, cheap: Any, eventually: Any, tmp_path: Path
) -> None:
    settings = Settings(response_ms=0, results=str(tmp_path))
    server = start_server(executor=stepwise, cost=cheap, settings=settings)
    jobs = jobs_of(server)
    job = jobs.accepted(steps=4)
    server.executor.may_run.release()
    eventually(lambda: jobs.get(job)["state"] == "running")
    with ThreadPoolExecutor(1) as stopping:
        stopped = stopping.submit(server.worker.drain, 0)
        eventually(lambda: server.worker.is_draining and not server.worker.is_alive)
        server.executor.may_run.release(4)
        stopped.result(60)
    server.app.state.jobs.stop()
    left = stored(job, tmp_path)
    assert (left.state, left.started_s, left.attempts) == (JobState.QUEUED, None, 0)


@pytest.mark.parametrize("is_promised", [False, True], ids=["waiting", "promised"])
def test_what_servers_ended_at_is_made_one_at_a_time(
    start_server: Any,
    jobs_of: Any,
    held: Any,
    cheap: Any,
    eventually: Any,
    leave: Leave,
    tmp_path: Path,
    is_promised: bool,
) -> None:
    """So that those that were together with the one to blame are not together with it again; others go along."""
    left = []
    for place, attempts_before in enumerate((1, 2, 0)):
        promise = {"latency_ms": 60_000, "due_s": time.time() + 55 + place} if is_promised else {}
        left.append(leave(JobState.RUNNING, age_s=3 - place, attempts=attempts_before, **promise))
    server = start_server(executor=held, cost=cheap, settings=Settings(response_ms=0, results=str(tmp_path)))
    eventually(lambda: server.metric("elit_jobs_in_engine") > 0)
    eventually(lambda: [stored(job, tmp_path).attempts for job in left] == [2, 2, 1])
    server.executor.may_run.set()
    assert {jobs_of(server).ended(job)["state"] for job in left} == {"done"}


def test_a_promise_is_kept_or_expires(start_server: Any, jobs_of: Any, leave: Leave, tmp_path: Path) -> None:
    late = leave(JobState.RUNNING, age_s=100, due_s=time.time() - 40, latency_ms=60_000)
    early = leave(JobState.RUNNING, age_s=1, due_s=time.time() + 59, latency_ms=60_000)
    jobs = jobs_of(start_server(settings=Settings(response_ms=0, results=str(tmp_path))))
    expired, done = jobs.ended(late), jobs.ended(early)
    assert expired["state"] == "expired"
    assert expired["error"]["type"] == "urn:elit-serve:deadline-exceeded"
    assert "60000" in expired["error"]["detail"]
    assert done["state"] == "done"
    assert done["result"]["promised"] is True
    assert done["result"]["deadline_met"] is True


def test_what_this_model_cannot_make_fails(start_server: Any, jobs_of: Any, leave: Leave, tmp_path: Path) -> None:
    """The server was started again with another model."""
    unknown, after_it = leave(JobState.QUEUED, label="oak"), leave(JobState.QUEUED)
    jobs = jobs_of(start_server(settings=Settings(response_ms=0, results=str(tmp_path))))
    failed = jobs.ended(unknown)
    assert failed["state"] == "failed"
    assert failed["error"]["errors"][0]["field"] == "label"
    assert jobs.ended(after_it)["state"] == "done"


def test_pictures_of_no_job_that_is_done_are_removed(start_server: Any, leave: Leave, tmp_path: Path) -> None:
    begun = leave(JobState.RUNNING)
    with closing(Results(tmp_path)) as results:
        results.write(begun["id"], [b"half a picture"], "jpeg")
        results.write("0" * 32, [b"of a job that is gone"], "png")
    start_server(settings=Settings(results=str(tmp_path)))
    assert not (tmp_path / "pictures" / ("0" * 32)).exists()
    assert not (tmp_path / "pictures" / begun["id"] / "0.jpeg").exists()


def test_files_that_are_said_to_be_kept_are_there(tmp_path: Path, leave: Leave) -> None:
    job = leave(JobState.RUNNING)

    class Watched(Results):
        def remove(self, job_id: str) -> None:
            assert stored({"id": job_id}, tmp_path).result_bytes == 0
            super().remove(job_id)

    with closing(Watched(tmp_path)) as results, closing(Database.open(None, tmp_path)) as database:
        store = JobStore(database)
        store.end(job["id"], JobState.DONE, result_bytes=results.write(job["id"], [b"a picture"], "png"))
        retention = Retention(store, results, max_bytes=0, seconds=3600)
        retention.recover()
        retention.shrink()
        with pytest.raises(ResultsGone):
            results.read(job["id"], 0, "png")
