"""Following a job: what happens to it, as it happens, and again for who comes late or comes back."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image

pytestmark = pytest.mark.made_by("worker", "fleet")


def names(events: list[tuple[str, str, Any]]) -> list[str]:
    return [name for _, name, _ in events]


def test_a_job_is_followed_from_its_queue_to_its_end(start_server: Any, jobs_of: Any, held: Any, cheap: Any) -> None:
    server = start_server(executor=held, cost=cheap)
    jobs = jobs_of(server)
    job = jobs.accepted(steps=4, previews=1, seed=7)
    stream = jobs.events(job)
    assert next(stream)[1] == "queued"
    server.executor.may_run.set()
    events = list(stream)
    assert [name for name in names(events) if name != "preview"] == ["started", "step", "step", "step", "step", "done"]
    steps = [data for _, name, data in events if name == "step"]
    assert [(step["seed"], step["step"], step["steps"]) for step in steps] == [
        (7, number, 4) for number in (1, 2, 3, 4)
    ]
    (preview,) = [data for _, name, data in events if name == "preview"]
    assert (preview["seed"], preview["index"], preview["step"], preview["output_format"]) == (7, 0, 2, "png")
    assert Image.open(io.BytesIO(base64.b64decode(preview["b64_json"]))).size == (32, 32)
    assert events[-1][2] == jobs.get(job)
    assert events[-1][2]["result"]["images"][0]["levels"] == [step["level"] for step in steps]


def test_who_comes_late_is_told_where_the_job_is(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    job = jobs.ended(jobs.accepted())
    assert names(list(jobs.events(job))) == ["queued", "done"]


def test_who_comes_back_gets_what_came_meanwhile(start_server: Any, jobs_of: Any, held: Any, cheap: Any) -> None:
    server = start_server(executor=held, cost=cheap)
    jobs = jobs_of(server)
    job = jobs.accepted(n=2, steps=6)
    stream = jobs.events(job)
    queued_id, name, _ = next(stream)
    assert name == "queued"
    stream.close()
    server.executor.may_run.set()
    jobs.ended(job)
    later = list(jobs.events(job, queued_id))
    assert names(later) == ["done"]
    again = list(jobs.events(job, "of-another-server"))
    assert names(again) == ["queued", "done"]
    last_id = later[-1][0]
    over = server.client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": last_id})
    assert over.status_code == 204


def test_an_id_that_no_event_has_is_an_error_of_the_caller(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    job = jobs.ended(jobs.accepted())
    token = server.app.state.jobs.events.token
    for last_event_id in ("9" * 5000, f"{token}-{'9' * 5000}", f"{token}--1", f"{token}-1_0", f"{token}-"):
        headers = {"Last-Event-ID": last_event_id}
        refused = server.client.get(f"/v1/jobs/{job['id']}/events", headers=headers)
        assert refused.status_code == 422, last_event_id[:20]
        assert [error["field"] for error in refused.json()["errors"]] == ["Last-Event-ID"]


def test_the_present_state_is_the_last_step_of_each_picture(
    start_server: Any, jobs_of: Any, stepwise: Any, cheap: Any, eventually: Any
) -> None:
    server = start_server(executor=stepwise, cost=cheap)
    jobs = jobs_of(server)
    job = jobs.accepted(n=2, seed=3, steps=5, budget=1, previews=3)
    server.executor.may_run.release(3)
    eventually(lambda: jobs.get(job)["state"] == "running" and server.executor.num_launched == 4)
    stream = jobs.events(job)
    seen = [next(stream) for _ in range(6)]
    assert names(seen[:2]) == ["queued", "started"]
    steps = [data for _, name, data in seen if name == "step"]
    assert sorted((step["seed"], step["step"]) for step in steps) == [(3, 3), (4, 3)]
    previews = [data for _, name, data in seen if name == "preview"]
    assert sorted((preview["seed"]) for preview in previews) == [3, 4]
    stream.close()
    resumed = jobs.events(job, seen[-1][0])
    server.executor.may_run.release(10)
    following = list(resumed)
    assert "queued" not in names(following)
    assert [data["step"] for _, name, data in following if name == "step"] == [4, 4, 5, 5]
    assert names(following)[-1] == "done"


def test_everybody_who_follows_is_told_of_a_cancellation(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any
) -> None:
    server = start_server(executor=held, cost=cheap)
    jobs = jobs_of(server)
    job = jobs.accepted()
    with ThreadPoolExecutor(3) as followers:
        streams = [jobs.events(job) for _ in range(3)]
        for stream in streams:
            assert next(stream)[1] == "queued"
        jobs.cancel(job)
        ends = [events[-1] for events in followers.map(list, streams)]
    assert {(name, data["state"]) for _, name, data in ends} == {("cancelled", "cancelled")}
    server.executor.may_run.set()


def test_a_server_that_ends_lets_its_followers_go(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any
) -> None:
    server = start_server(executor=held, cost=cheap)
    jobs = jobs_of(server)
    stream = jobs.events(jobs.accepted())
    assert next(stream)[1] == "queued"
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(server.worker.stop)
        eventually(lambda: not server.worker.is_alive)
        server.executor.may_run.set()
        stopped.result(60)
    server.app.state.jobs.stop()
    assert set(names(list(stream))) <= {"started", "step"}
    refusal = jobs.post()
    assert refusal.status_code == 503
    assert refusal.json()["reason"] == "stopped"
