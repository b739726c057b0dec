"""Several servers of one machine with the same jobs: one has them, the others send on to it, and one of them takes
over when it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from elit_serve.client import Client, Job
from elit_serve.guests import GUESTS
from elit_serve.server.app import create_app, stop_guests
from elit_serve.server.connections import AnnouncingServer, http_config
from elit_serve.server.run import bind, load_and_measure
from elit_serve.server.settings import Settings
from elit_serve.server.sharing import listening
from tests.simulating import latency

LONG_MS = 400.0  # of a level and a picture: a picture of the lowest level takes 1.6 s


@dataclass(frozen=True)
class Member:
    """One of the servers, and a client for it."""

    url: str
    client: httpx.Client
    end: Callable[[], None]


@pytest.fixture
def members(bare_model: Path, tmp_path: Path) -> Iterator[Callable[..., Member]]:
    """Starts servers that have the same jobs."""
    folder = tmp_path / "jobs"
    folder.mkdir()
    files = {"model": str(bare_model), "simulate": str(bare_model / "cost.json"), "results": str(folder)}
    with ExitStack() as stack:
        yield lambda **more: stack.enter_context(
            member(Settings(**files, drain_seconds=0, response_ms=0, **more), folder)
        )


@contextmanager
def member(settings: Settings, folder: Path) -> Iterator[Member]:
    with listening(folder) as (beside, path), bind("127.0.0.1", 0) as listener:
        app = create_app([load_and_measure(settings)], settings, guests=GUESTS, shared=path)
        engines, ready = app.state.service.engines, threading.Event()

        def drain() -> None:
            engines.drain(settings.drain_seconds)
            stop_guests(app)

        server = AnnouncingServer(http_config(app, settings), on_ready=ready.set, drain=drain, stop=engines.stop)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener, beside]})
        thread.start()

        def end() -> None:
            server.should_exit = True
            thread.join(60)

        try:
            assert ready.wait(60)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=30) as client:
                yield Member(url, client, end)
        finally:
            end()


def test_every_server_answers_for_jobs_as_their_owner_does(members: Any) -> None:
    owner, other = members(), members()
    sent = other.client.post("/v1/jobs", json={"label": "rose", "seed": 3}, headers={"Idempotency-Key": "once"})
    assert sent.status_code == 202
    assert sent.headers["Location"] == f"/v1/jobs/{sent.json()['id']}"
    assert len(sent.headers.get_list("X-Request-Id")) == 1
    again = owner.client.post("/v1/jobs", json={"label": "rose", "seed": 3}, headers={"Idempotency-Key": "once"})
    assert again.json()["id"] == sent.json()["id"]
    for server in (owner, other):
        with Client(server.url) as client:
            assert client.jobs.wait(sent.json()["id"]).state == "done"
            assert client.jobs.image(sent.json()["id"]).startswith(b"\x89PNG")
    assert len(other.client.get("/v1/jobs", params={"limit": 5}).json()["data"]) == 1
    assert other.client.get("/v1/jobs/nothing").json()["type"] == "urn:elit-serve:job-not-found"
    assert other.client.post("/v1/jobs", json={"label": "nothing"}).status_code == 422


def test_a_job_is_followed_through_another_server(members: Any) -> None:
    members()
    with Client(members().url) as client:
        job = client.jobs.create(label="rose", steps=4)
        *_, last = client.jobs.events(job.id)
    assert isinstance(last, Job)
    assert last.state == "done"


def test_another_server_takes_over_and_makes_what_was_begun(members: Any, bare_model: Path, eventually: Any) -> None:
    (bare_model / "cost.json").write_text(latency(step_ms=LONG_MS).model_dump_json(), encoding="utf-8")
    owner, other = members(), members()
    body, key = {"label": "rose", "seed": 3, "budget": 0.25}, {"Idempotency-Key": "once"}
    job = owner.client.post("/v1/jobs", json=body, headers=key).json()
    eventually(lambda: other.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "running")
    owner.end()
    again = other.client.post("/v1/jobs", json=body, headers=key)
    assert again.status_code == 202, again.text
    assert again.json()["id"] == job["id"]
    with Client(other.url) as client:
        done = client.jobs.wait(job["id"])
    assert done.state == "done"
    assert done.result is not None
    assert done.result.images[0].seed == 3
    third = members()
    assert third.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done"


def test_keys_and_limits_hold_where_a_request_comes_in(members: Any) -> None:
    members(api_key=("secret-key",))
    other = members(api_key=("secret-key",))
    assert other.client.get("/v1/jobs").status_code == 401
    assert other.client.get("/v1/jobs", headers={"Authorization": "Bearer secret-key"}).status_code == 200


def test_pictures_are_finished_by_whichever_server_is_asked(members: Callable[..., Member]) -> None:
    first, second = members(), members()
    with ThreadPoolExecutor(1) as callers:
        body = {"label": 0, "n": 4, "latency_ms": 60_000}
        answer = callers.submit(first.client.post, "/v1/generate", json=body, headers={"X-Request-Id": "mine"})
        path, until_s = "/v1/requests/mine/finish", time.monotonic() + 30
        while (status := second.client.post(path).status_code) != 202:
            assert status in (404, 409)  # it has not come, or not begun
            assert time.monotonic() < until_s
            time.sleep(0.05)
        assert answer.result(60).json()["finished_early"]
    assert second.client.post("/v1/requests/nobody-s/finish").status_code == 404
