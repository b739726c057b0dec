"""Jobs where there are keys: each belongs to the key that it was sent with."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from elit_serve.jobs.database import Database
from elit_serve.jobs.states import JobState, StoredJob, new_id
from elit_serve.jobs.store import JobStore
from elit_serve.server.settings import Settings

KEYS = ("alice-has-a-key", "bob-has-another")


def settings(**others: Any) -> Settings:
    return Settings(response_ms=0, api_key=tuple(map(SecretStr, KEYS)), **others)


@pytest.fixture
def as_owner(jobs_of: Any) -> Any:
    """Jobs as the owner of one of the keys sees them."""

    def jobs(server: Any, key: str) -> Any:
        seen = jobs_of(server)
        seen.client.headers["Authorization"] = f"Bearer {key}"
        return seen

    return jobs


def test_a_job_is_seen_with_the_key_that_it_was_sent_with(start_server: Any, as_owner: Any) -> None:
    server = start_server(settings=settings())
    alices = as_owner(server, KEYS[0])
    job = alices.ended(alices.accepted(key="key"))
    assert alices.picture(job).status_code == 200
    bobs = as_owner(server, KEYS[1])
    other = bobs.accepted(key="key")
    assert other["id"] != job["id"]
    assert [listed["id"] for listed in bobs.listed()["data"]] == [other["id"]]
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/images/0")):
        assert bobs.client.request(method, f"/v1/jobs/{job['id']}{path}").status_code == 404
    del bobs.client.headers["Authorization"]
    assert bobs.client.get("/v1/jobs").status_code == 401


def test_waiting_jobs_of_different_keys_take_turns(tmp_path: Path) -> None:
    with closing(Database.open(None, tmp_path)) as database:
        store = JobStore(database)
        first, second, other = (waiting(owner, number) for number, owner in enumerate(("alice", "alice", "bob")))
        promised = replace(waiting("alice", 3), due_s=10.0)
        for job in (first, second, other):
            store.add(job)
        assert store.next_waiting(besides=(), load={}) == first
        assert store.next_waiting(besides=[first.id], load={"alice": 1}) == other
        assert store.next_waiting(besides=[first.id], load={"alice": 1, "bob": 2}) == second
        assert store.next_waiting(besides=[first.id, other.id], load={"alice": 1, "bob": 1}) == second
        assert store.next_waiting(besides=[first.id, second.id, other.id], load={}) is None
        store.add(promised)
        assert store.next_waiting(besides=(), load={"alice": 9}) == promised


def test_what_servers_ended_at_most_often_is_tried_last(tmp_path: Path) -> None:
    with closing(Database.open(None, tmp_path)) as database:
        store = JobStore(database)
        fresh, twice, once = (replace(waiting("alice", number), attempts=n) for number, n in enumerate((0, 2, 1)))
        for job in (fresh, twice, once):
            store.add(job)
        assert store.next_waiting(besides=(), load={}) == once
        assert store.next_waiting(besides=[once.id], load={}) == twice
        assert store.next_waiting(besides=(), load={}, may_be_suspect=False) == fresh
        assert store.next_waiting(besides=[once.id, twice.id], load={}) == fresh
        promised = [replace(waiting("alice", 3 + n), attempts=n, due_s=10.0 - n) for n in (0, 1, 2)]
        for job in promised:
            store.add(job)
        for number, job in enumerate(promised):
            assert store.next_waiting(besides=[job.id for job in promised[:number]], load={}) == job


def waiting(owner: str, number: int) -> StoredJob:
    return StoredJob(
        id=new_id(number),
        owner=owner,
        idempotency_key=None,
        fingerprint="",
        state=JobState.QUEUED,
        request="{}",
        num_images=1,
        created_s=number,
    )
