"""Disk full, database locked or gone: new jobs are refused, nothing is lost, and /v1/generate goes on."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

import psycopg
import pytest
import torch

from elit_serve.engine.executor.slots import Executor, RunningStep
from elit_serve.engine.picture import Picture
from elit_serve.errors import InvalidInput
from elit_serve.jobs.postgres import LOCK
from elit_serve.jobs.results import SPARE_BYTES, Results
from elit_serve.plans.step_kind import StepKind
from elit_serve.server.settings import Settings


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for little more than what is spared."""
    folder = tmp_path / "disk"
    folder.mkdir()
    size = SPARE_BYTES + (4 << 20)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def fill(disk: Path) -> Path:
    """A file that leaves nothing."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        write_for_ever(file)
    return ballast


def write_for_ever(file: FileIO) -> None:
    while True:
        file.write(bytes(4096))


def test_a_full_disk_refuses_new_jobs_and_what_runs_is_done_when_there_is_room(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any, small_disk: Path
) -> None:
    settings = Settings(response_ms=0, results=str(small_disk))
    server = start_server(executor=held, cost=cheap, settings=settings)
    jobs = jobs_of(server)
    accepted = [jobs.accepted(seed=seed) for seed in range(8)]
    ballast = fill(small_disk)
    server.executor.may_run.set()
    eventually(lambda: server.metric("elit_jobs_stuck") == 1)
    refusal = jobs.post()
    assert refusal.status_code == 507
    assert refusal.json()["type"] == "urn:elit-serve:storage-full"
    assert server.generate({"label": "rose"}).status_code == 200
    assert jobs.get(accepted[0])["state"] in ("queued", "running")
    assert len(jobs.listed()["data"]) == 8
    ballast.unlink()
    assert {jobs.ended(job)["state"] for job in accepted} == {"done"}
    assert all(jobs.picture(job).status_code == 200 for job in accepted)
    assert jobs.ended(jobs.accepted())["state"] == "done"


def test_some_room_is_left_for_what_runs(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, small_disk: Path
) -> None:
    settings = Settings(response_ms=0, results=str(small_disk))
    server = start_server(executor=held, cost=cheap, settings=settings)
    jobs = jobs_of(server)
    accepted = jobs.accepted()
    (small_disk / "ballast").write_bytes(bytes(8 << 20))
    assert jobs.post().status_code == 507
    server.executor.may_run.set()
    assert jobs.ended(accepted)["state"] == "done"


def test_a_full_disk_of_the_database_alone_refuses_new_jobs_too(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any, small_disk: Path, tmp_path: Path
) -> None:
    settings = Settings(response_ms=0, results=str(tmp_path / "results"), database=f"sqlite:///{small_disk}/jobs")
    server = start_server(executor=held, cost=cheap, settings=settings)
    jobs = jobs_of(server)
    accepted = [jobs.accepted() for _ in range(4)]
    ballast = fill(small_disk)
    refusals = [jobs.post() for _ in range(40)]  # the file has room for a few more
    assert refusals[-1].status_code == 507
    assert refusals[-1].json()["type"] == "urn:elit-serve:storage-full"
    accepted += [answer.json() for answer in refusals if answer.status_code == 202]
    server.executor.may_run.set()
    eventually(lambda: server.metric("elit_jobs_stuck") == 1)
    assert server.generate({"label": "rose"}).status_code == 200
    assert jobs.get(accepted[0])["state"] in ("queued", "running")
    ballast.unlink()
    assert {jobs.ended(job)["state"] for job in accepted} == {"done"}


def test_a_locked_database_is_waited_for_and_the_rest_goes_on(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any, tmp_path: Path
) -> None:
    server = start_server(executor=held, cost=cheap, settings=Settings(response_ms=0, results=str(tmp_path)))
    jobs = jobs_of(server)
    accepted = [jobs.accepted() for _ in range(3)]
    other = sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    server.executor.may_run.set()
    assert server.generate({"label": "rose"}).status_code == 200
    refusal = jobs.post()
    assert refusal.status_code == 503
    assert refusal.json()["type"] == "urn:elit-serve:store-unavailable"
    assert int(refusal.headers["Retry-After"]) >= 1
    eventually(lambda: server.metric("elit_jobs_stuck") == 1)
    other.execute("COMMIT")
    other.close()
    assert {jobs.ended(job)["state"] for job in accepted} == {"done"}


def test_a_database_that_is_gone_comes_back(
    start_server: Any,
    jobs_of: Any,
    held: Any,
    cheap: Any,
    eventually: Any,
    postgres_server_url: str,
    postgres_url: str,
    tmp_path: Path,
) -> None:
    name = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_server_url, autocommit=True) as admin:
        settings = Settings(response_ms=0, results=str(tmp_path), database=postgres_url)
        server = start_server(executor=held, cost=cheap, settings=settings)
        jobs = jobs_of(server)
        accepted = [jobs.accepted(key=f"key {number}") for number in range(3)]
        assert jobs.accepted(key="key 1")["id"] == accepted[1]["id"]
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name])
        server.executor.may_run.set()
        for answer in (jobs.post(), server.client.get("/v1/jobs"), server.client.get(f"/v1/jobs/{'0' * 32}")):
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["Retry-After"]) >= 1
        assert server.generate({"label": "rose"}).status_code == 200
        eventually(lambda: server.metric("elit_jobs_stuck") == 1)
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
        eventually(lambda: server.metric("elit_jobs_stuck") == 0)
        assert {jobs.ended(job)["state"] for job in accepted} == {"done"}
        with pytest.raises(InvalidInput, match="another server"):  # it is the first one's again
            start_server(settings=settings.model_copy(update={"results": str(tmp_path / "of another")}))


def test_two_servers_do_not_share_a_database(
    start_server: Any, jobs_of: Any, eventually: Any, postgres_url: str, tmp_path: Path
) -> None:
    """Whoever has its lock may use it, also if the other had it before a restart of the database."""
    first, second = (Settings(results=str(tmp_path / name), database=postgres_url) for name in ("first", "second"))
    server = start_server(settings=first)
    jobs = jobs_of(server)
    with pytest.raises(InvalidInput, match=r"database: .*; a database of its own; another server uses this one$"):
        start_server(settings=second)
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        other.execute("SELECT pg_advisory_lock(%s)", [LOCK])
        eventually(lambda: server.metric("elit_jobs_stuck") == 1)
        refusal = jobs.post()
        assert refusal.status_code == 503
        assert refusal.json()["type"] == "urn:elit-serve:store-unavailable"
    eventually(lambda: server.metric("elit_jobs_stuck") == 0)
    assert jobs.ended(jobs.accepted())["state"] == "done"


class Lost(Executor):
    """Its device is lost at the first step."""

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return super().launch(pictures, kind)


def test_a_dead_engine_leaves_jobs_to_the_next_server(start_server: Any, jobs_of: Any, eventually: Any) -> None:
    server = start_server(executor=Lost)
    jobs = jobs_of(server)
    job = jobs.accepted()
    eventually(lambda: not server.worker.is_alive)
    assert jobs.get(job)["state"] == "queued"
    assert jobs.post().status_code == 503
    assert jobs.cancel(job)["state"] == "cancelled"


@pytest.mark.parametrize(
    "url", ["nothing", "mysql://localhost/x", "sqlite://", "sqlite:////nowhere/at/all", "postgresql://localhost:1/x"]
)
def test_a_database_that_cannot_be_used_stops_the_start(start_server: Any, url: str) -> None:
    with pytest.raises(InvalidInput, match="database"):
        start_server(settings=Settings(database=url))


def test_a_password_is_not_shown(start_server: Any) -> None:
    with pytest.raises(InvalidInput) as refusal:
        start_server(settings=Settings(database="postgresql://me:secret@localhost:1/x"))
    assert "secret" not in str(refusal.value)


def test_two_servers_do_not_share_a_folder(start_server: Any, tmp_path: Path) -> None:
    settings = Settings(results=str(tmp_path / "results"))
    start_server(settings=settings)
    with pytest.raises(InvalidInput, match="another server"):
        start_server(settings=settings)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InvalidInput, match="results"):
        Results(file / "folder")
