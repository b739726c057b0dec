"""What a server finds that another has left: by being killed, or with other settings."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from elit_serve.server.jobs.database import Database
from elit_serve.server.jobs.results import Results
from elit_serve.server.jobs.states import JobState, StoredJob, new_id
from elit_serve.server.jobs.store import JobStore
from elit_serve.server.settings import Settings

Leave = Callable[..., dict[str, Any]]


@pytest.fixture
def leave(tmp_path: Path) -> Leave:
    """Writes a job into the database of `tmp_path`, as a server that is killed leaves it."""

    def leave(state: JobState, *, age_s: float = 0, due_s: float | None = None, **body: Any) -> dict[str, Any]:
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
        )
        with closing(Database.open(None, tmp_path)) as database:
            JobStore(database).add(job)
        return {"id": job.id}

    return leave


def test_what_was_begun_is_made_from_the_start(start_server: Any, jobs_of: Any, leave: Leave, tmp_path: Path) -> None:
    begun, queued = leave(JobState.RUNNING, budget=0.5), leave(JobState.QUEUED, budget=1)
    server = start_server(settings=Settings(response_ms=0, results=str(tmp_path)))
    jobs = jobs_of(server)
    for job, budget in ((begun, 0.5), (queued, 1.0)):
        assert jobs.ended(job)["state"] == "done"
        assert jobs.picture(job).content == server.pipeline.generate("tulip", budget=budget, seed=7).encode()


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
