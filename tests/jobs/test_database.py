"""Whatever goes wrong with the database of jobs: "not now" for callers, and nothing of what became of jobs is lost."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from elit_serve.errors import InvalidInput
from elit_serve.jobs.database import Database
from elit_serve.server.settings import Settings

NOT_NOW = "urn:elit-serve:store-unavailable"


@contextmanager
def jobs_under_way(server: Any, jobs: Any, eventually: Any) -> Iterator[None]:
    """Three jobs that the engine has, of which it makes the pictures within; all of them are to be done after it."""
    accepted = [jobs.accepted(seed=seed) for seed in range(3)]
    eventually(lambda: server.metric("elit_jobs_in_engine") == 3)
    yield
    eventually(lambda: server.metric("elit_jobs_stuck") == 0)
    assert [jobs.ended(job)["state"] for job in accepted] == ["done"] * 3
    assert [jobs.picture(job).status_code for job in accepted] == [200] * 3
    assert server.metric("elit_job_reports_unwritten") == 0
    assert jobs.ended(jobs.accepted())["state"] == "done"


def stuck(server: Any, jobs: Any, eventually: Any) -> None:
    """What the engine makes cannot be written down, which is counted; it goes on making pictures for others."""
    server.executor.may_run.set()
    eventually(lambda: server.metric("elit_jobs_stuck") == 1)
    eventually(lambda: server.metric("elit_job_reports_unwritten") > 0)
    eventually(lambda: refused(jobs.post()))
    assert server.generate({"label": "rose"}).status_code == 200


def refused(answer: Any) -> bool:
    """Never by a fault of the server's."""
    if answer.status_code == 202:
        return False  # it was stored in time
    assert answer.status_code == 503, answer.text
    assert answer.json()["type"] == NOT_NOW
    assert int(answer.headers["Retry-After"]) >= 1
    return True


@pytest.mark.parametrize(
    ("damage", "repair"),
    [
        ("ALTER SYSTEM SET default_transaction_read_only = on", "ALTER SYSTEM RESET default_transaction_read_only"),
        (
            "ALTER DATABASE {name} SET default_transaction_read_only = on",
            "ALTER DATABASE {name} RESET default_transaction_read_only",
        ),
        ("ALTER TABLE elit_jobs RENAME TO hidden", "ALTER TABLE hidden RENAME TO elit_jobs"),
        ("ALTER TABLE elit_jobs RENAME state TO hidden", "ALTER TABLE elit_jobs RENAME hidden TO state"),
    ],
    ids=["read-only", "read-only sessions", "no table", "no column"],
)
def test_postgresql_in_trouble(
    start_server: Any,
    jobs_of: Any,
    held: Any,
    cheap: Any,
    eventually: Any,
    postgres_url: str,
    tmp_path: Path,
    damage: str,
    repair: str,
) -> None:
    name = postgres_url.rpartition("/")[2]
    settings = Settings(response_ms=0, results=str(tmp_path), database=postgres_url)
    server = start_server(executor=held, cost=cheap, settings=settings)
    jobs = jobs_of(server)
    with psycopg.connect(postgres_url, autocommit=True) as admin, jobs_under_way(server, jobs, eventually):
        admin.execute(damage.format(name=name))
        try:
            admin.execute("SELECT pg_reload_conf()")
            others = f"datname = '{name}' AND pid <> pg_backend_pid()"
            admin.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
            stuck(server, jobs, eventually)
        finally:
            admin.execute(repair.format(name=name))
            admin.execute("SELECT pg_reload_conf()")


def test_a_postgresql_that_stands_still(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any, postgres_url: str, tmp_path: Path
) -> None:
    """As with its machine suspended: connections stay, and nothing answers."""
    settings = Settings(response_ms=0, results=str(tmp_path), database=postgres_url)
    server = start_server(executor=held, cost=cheap, settings=settings)
    jobs = jobs_of(server)
    with psycopg.connect(postgres_url, autocommit=True) as admin, jobs_under_way(server, jobs, eventually):
        (postmaster,) = admin.execute("SELECT split_part(pg_read_file('postmaster.pid'), E'\\n', 1)::int").fetchone()
        backends = admin.execute("SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'").fetchall()
        processes = [postmaster, *(pid for (pid,) in backends)]
        for process in processes:
            os.kill(process, signal.SIGSTOP)
        try:
            stuck(server, jobs, eventually)
        finally:
            for process in [*processes, parent_of(postmaster)]:  # runuser stops with whom it runs, and stays so
                os.kill(process, signal.SIGCONT)


def parent_of(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return int(status.partition("PPid:")[2].split()[0])


def test_bytes_of_the_sqlite_files_overwritten(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any, tmp_path: Path
) -> None:
    server = start_server(executor=held, cost=cheap, settings=Settings(response_ms=0, results=str(tmp_path)))
    jobs = jobs_of(server)
    # Not by way of Python's files, and never closed: that would end SQLite's locks on them.
    # The index of the log goes too: SQLite makes it anew then, from files whose pages it may else have in memory.
    names = ("jobs.sqlite3", "jobs.sqlite3-wal", "jobs.sqlite3-shm")
    *files, index = (os.open(tmp_path / name, os.O_RDWR) for name in names)
    no_index = b"\xa5" * os.fstat(index).st_size
    with jobs_under_way(server, jobs, eventually):
        intact = [os.pread(file, os.fstat(file).st_size, 0) for file in files]
        for file, content in zip(files, intact, strict=True):
            os.pwrite(file, b"\xa5" * len(content), 0)
        os.pwrite(index, no_index, 0)
        stuck(server, jobs, eventually)
        eventually(lambda: refused(server.client.get(f"/v1/jobs/{'0' * 32}")))
        for file, content in zip(files, intact, strict=True):  # at once: the one must not be used without the other
            os.pwrite(file, content, 0)
        os.pwrite(index, no_index, 0)


def test_a_damaged_row_is_no_fault_of_others(start_server: Any, jobs_of: Any, tmp_path: Path) -> None:
    jobs = jobs_of(start_server(settings=Settings(response_ms=0, results=str(tmp_path))))
    damaged, whole = (jobs.ended(jobs.accepted()) for _ in range(2))
    for column, value in (("request", "{"), ("result", "\x00"), ("state", "dome")):
        with closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as other:
            other.execute(f"UPDATE elit_jobs SET {column} = ? WHERE id = ?", [value, damaged["id"]])
        assert refused(jobs.client.get(f"/v1/jobs/{damaged['id']}"))
    assert jobs.get(whole)["state"] == "done"
    assert jobs.ended(jobs.accepted())["state"] == "done"


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_removed_files_are_noticed_at_once(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any, tmp_path: Path, suffix: str
) -> None:
    server = start_server(executor=held, cost=cheap, settings=Settings(response_ms=0, results=str(tmp_path)))
    jobs = jobs_of(server)
    file, elsewhere = tmp_path / f"jobs.sqlite3{suffix}", tmp_path / "elsewhere"
    with jobs_under_way(server, jobs, eventually):
        file.rename(elsewhere)
        assert refused(jobs.post())
        assert refused(server.client.get("/v1/jobs"))
        stuck(server, jobs, eventually)
        shutil.copy(elsewhere, file)
        assert refused(jobs.post()), "another file is not the one in which jobs are stored"
        elsewhere.replace(file)


def test_two_servers_do_not_share_a_file_whatever_its_name(
    start_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, other_results = tmp_path / "folder", tmp_path / "other"
    folder.mkdir()
    other_results.mkdir()
    (tmp_path / "linked folder").symlink_to(folder)
    (tmp_path / "linked file").symlink_to(folder / "jobs.sqlite3")
    monkeypatch.chdir(folder)
    start_server(settings=Settings(response_ms=0, results=str(folder)))
    for name in (f"{folder}/jobs.sqlite3", "jobs.sqlite3", "../linked folder/jobs.sqlite3", f"{tmp_path}/linked file"):
        with pytest.raises(InvalidInput, match=r"^database: .*a database of its own; another server uses this one$"):
            start_server(settings=Settings(response_ms=0, results=str(other_results), database=f"sqlite:///{name}"))


def test_a_file_is_free_when_its_server_has_ended(tmp_path: Path) -> None:
    for _ in range(2):
        with closing(Database.open(f"sqlite:///{tmp_path}/jobs", tmp_path)):
            pass
