"""Jobs over HTTP: accepted now, made later, asked for, followed, cancelled, listed."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from PIL import Image
from serving import SLOW_COST

from elit_serve.engine.executor.slots import Executor
from elit_serve.server.settings import Settings

pytestmark = pytest.mark.made_by("worker", "fleet")


def test_a_job_is_made_and_its_pictures_are_those_of_generate(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    accepted = jobs.accepted(seed=7, n=2, budget=0.5, output_format="webp")
    assert accepted["state"] in ("queued", "running", "done")
    assert accepted["request"] == {"label": "tulip", "seed": 7, "n": 2, "budget": 0.5, "output_format": "webp"}
    job = jobs.ended(accepted)
    assert job["state"] == "done"
    assert job["files"] == "kept"
    assert job["error"] is None
    assert job["created_at"] <= job["started_at"] <= job["ended_at"] < job["expires_at"]
    result = job["result"]
    assert result["priority"] == "batch"
    assert result["promised"] is False
    assert [image["seed"] for image in result["images"]] == [7, 8]
    for image in result["images"]:
        assert image["levels"] == [2, 2, 2, 2]
        file = server.client.get(image["url"])
        assert file.headers["Content-Type"] == "image/webp"
        assert len(file.content) == image["num_bytes"]
        assert Image.open(io.BytesIO(file.content)).size == (32, 32)
    alone = server.generate({"label": "tulip", "seed": 7, "n": 2, "budget": 0.5, "output_format": "webp"}).json()
    assert {**alone, "images": None, "priority": None}.keys() == result.keys()


def test_a_seed_left_out_is_drawn_when_the_job_is_accepted(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    first, second = jobs.accepted(), jobs.accepted()
    assert first["request"]["seed"] != second["request"]["seed"]
    job = jobs.ended(first)
    assert job["result"]["images"][0]["seed"] == first["request"]["seed"]


def test_the_same_key_gives_the_same_job_and_is_nobody_elses(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    first = jobs.accepted(key="k1", n=2)
    assert jobs.accepted(key="k1", n=2)["id"] == first["id"]
    jobs.ended(first)
    assert jobs.accepted(key="k1", n=2)["id"] == first["id"]
    assert jobs.accepted(key="k2", n=2)["id"] != first["id"]
    other = jobs.post(key="k1", n=1)
    assert other.status_code == 422
    assert other.json()["errors"][0]["field"] == "Idempotency-Key"
    assert jobs.post(key="x" * 256).status_code == 422


def test_requests_of_one_key_at_the_same_time_make_one_job(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    with ThreadPoolExecutor(8) as callers:
        answers = list(callers.map(lambda _: jobs.post(key="at once", latency_ms=60_000), range(8)))
    assert {answer.status_code for answer in answers} <= {202, 409}
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 202}) == 1
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 409)


def test_requests_are_counted_by_route_whatever_the_job(start_server: Any, jobs_of: Any) -> None:
    server = start_server()
    jobs = jobs_of(server)
    made = [jobs.ended(jobs.accepted()) for _ in range(2)]
    assert [jobs.picture(job).status_code for job in made] == [200, 200]
    assert server.metric('elit_requests_total{outcome="ok",route="/v1/jobs/{job_id}/images/{index}"}') == 2
    assert server.metric('elit_requests_total{outcome="ok",route="/v1/jobs"}') == 2
    assert server.metric("elit_jobs_accepted_total") == 2
    assert server.metric('elit_jobs_ended_total{state="done"}') == 2
    assert server.metric('elit_generations_total{outcome="done"}') == 2


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"label": "nothing"}, "label"),
        ({"label": "rose", "n": 17}, "n"),
        ({"label": "rose", "steps": 0}, "steps"),
        ({"label": "rose", "preview": 1}, "preview"),
        ({"label": "rose", "previews": 4}, "previews"),
        ({"label": "rose", "webhook": {"url": "http://localhost/"}}, "webhook.url"),
        ({"label": "rose", "webhook": {}}, "webhook.url"),
        ({"label": "rose", "output_format": "safetensors"}, "output_format"),
        ({"label": "rose", "output_compression": 50}, "output_compression"),
    ],
)
def test_what_cannot_be_made_is_refused_at_once(server: Any, body: dict[str, Any], field: str) -> None:
    refusal = server.client.post("/v1/jobs", json=body)
    assert refusal.status_code == 422
    assert refusal.headers["Content-Type"] == "application/problem+json"
    assert refusal.json()["errors"][0]["field"] == field, refusal.json()


@pytest.mark.parametrize("path", ["0" * 32, "nothing", "..%2F..%2Fjobs.sqlite3", "%00", "0" * 32 + "/images/0"])
def test_there_is_nothing_where_no_job_is(server: Any, path: str) -> None:
    for method in ("GET", "DELETE"):
        answer = server.client.request(method, f"/v1/jobs/{path}")
        assert answer.status_code in (404, 405), answer.text


@pytest.mark.parametrize(("index", "status"), [("0", 200), ("1", 404), ("-1", 422), ("x", 422), ("..%2F0", 404)])
def test_only_pictures_of_the_job_can_be_had(server: Any, jobs_of: Any, index: str, status: int) -> None:
    jobs = jobs_of(server)
    job = jobs.ended(jobs.accepted())
    assert jobs.picture(job, index).status_code == status


@pytest.mark.parametrize(("n", "has"), [(1, "one picture, images/0"), (2, "2 pictures, images/0 to 1")])
def test_a_picture_too_many_is_told_apart_from_no_job(server: Any, jobs_of: Any, n: int, has: str) -> None:
    jobs = jobs_of(server)
    refusal = jobs.picture(jobs.accepted(n=n), 3)  # whether or not it is done
    assert refusal.status_code == 404
    assert refusal.json()["type"] == "urn:elit-serve:picture-not-found"
    assert refusal.json()["detail"] == f"there is no images/3: the job has {has}"
    missing = server.client.get(f"/v1/jobs/{'0' * 32}/images/3").json()
    assert missing["type"] == "urn:elit-serve:job-not-found"


def test_a_target_is_promised_or_refused_at_once(start_server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(start_server(cost=SLOW_COST))
    refusal = jobs.post(latency_ms=2_000)
    assert refusal.status_code == 422
    assert refusal.json()["min_latency_ms"] > 30_000
    assert jobs.listed()["data"] == []
    job = jobs.ended(jobs.accepted(latency_ms=72_000))
    assert job["result"]["promised"] is True
    assert job["result"]["deadline_met"] is True
    assert job["result"]["priority"] == "interactive"
    assert 1 <= job["result"]["images"][0]["level"] < 4


def test_a_promise_that_is_not_kept_expires(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any
) -> None:
    server = start_server(executor=held, cost=cheap)
    jobs = jobs_of(server)
    promised = jobs.accepted(latency_ms=60_000)
    eventually(lambda: server.health()["running"] == 1)
    server.clock.advance(61)  # while the device stands still
    server.executor.may_run.set()
    job = jobs.ended(promised)
    assert job["state"] == "expired"
    assert job["error"]["type"] == "urn:elit-serve:deadline-exceeded"
    assert jobs.picture(job).status_code == 409


def test_jobs_wait_outside_the_engine_and_leave_it_room(
    start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any
) -> None:
    """Batches of two: four pictures of jobs are in the engine, the others wait in the database."""
    server = start_server(executor=held, cost=cheap, settings=Settings(max_queue=4, max_jobs=6, response_ms=0))
    jobs = jobs_of(server)
    accepted = [jobs.accepted() for _ in range(4)]
    eventually(lambda: server.health()["running"] + server.health()["queue_length"] == 4)
    accepted += [jobs.accepted() for _ in range(2)]
    assert [job["state"] for job in jobs.listed(state="queued")["data"]].count("queued") >= 2
    full = jobs.post()
    assert full.status_code == 503
    assert full.json()["reason"] == "queue_full"
    assert int(full.headers["Retry-After"]) >= 1
    server.executor.may_run.set()
    assert {jobs.ended(job)["state"] for job in accepted} == {"done"}
    assert jobs.accepted()["state"] == "queued"


def test_cancelling_frees_the_engine(start_server: Any, jobs_of: Any, held: Any, cheap: Any, eventually: Any) -> None:
    server = start_server(executor=held, cost=cheap)
    jobs = jobs_of(server)
    running, waiting = jobs.accepted(n=4, steps=50), jobs.accepted()
    eventually(lambda: server.health()["running"] > 0)
    assert jobs.cancel(waiting)["state"] == "cancelled"
    assert jobs.cancel(running)["state"] == "cancelled"
    eventually(lambda: server.health()["running"] + server.health()["queue_length"] == 0)
    server.executor.may_run.set()
    assert jobs.cancel(running)["state"] == "cancelled"
    assert jobs.ended(jobs.accepted())["state"] == "done"
    assert jobs.get(running)["state"] == "cancelled"
    assert jobs.picture(running).status_code == 409
    assert server.metric('elit_jobs_ended_total{state="cancelled"}') == 2


def test_cancelling_what_is_done_changes_nothing(server: Any, jobs_of: Any) -> None:
    jobs = jobs_of(server)
    job = jobs.ended(jobs.accepted())
    assert jobs.cancel(job) == job
    assert jobs.picture(job).status_code == 200


def test_jobs_are_listed_page_by_page_and_by_state(start_server: Any, jobs_of: Any) -> None:
    server = start_server()
    jobs = jobs_of(server)
    ids = [jobs.ended(jobs.accepted())["id"] for _ in range(5)]
    first = jobs.listed(limit=2)
    second = jobs.listed(limit=2, cursor=first["next_cursor"])
    third = jobs.listed(limit=2, cursor=second["next_cursor"])
    assert [job["id"] for page in (first, second, third) for job in page["data"]] == ids[::-1]
    assert third["next_cursor"] is None
    assert len(jobs.listed(state="done")["data"]) == 5
    assert jobs.listed(state="failed")["data"] == []
    for query, field in (("limit=0", "limit"), ("state=x", "state"), ("cursor=../", "cursor")):
        refusal = server.client.get(f"/v1/jobs?{query}")
        assert refusal.status_code == 422
        assert refusal.json()["errors"][0]["field"] == field


def test_pictures_go_when_they_are_old_and_jobs_later(start_server: Any, jobs_of: Any, eventually: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, results_seconds=0.4))
    jobs = jobs_of(server)
    job = jobs.ended(jobs.accepted())
    eventually(lambda: jobs.picture(job).status_code == 410)
    gone = jobs.get(job)
    assert gone["files"] == "gone"
    assert gone["state"] == "done"
    eventually(lambda: server.client.get(f"/v1/jobs/{job['id']}").status_code == 404)


def test_the_oldest_pictures_go_when_there_are_too_many(start_server: Any, jobs_of: Any, eventually: Any) -> None:
    size = len(start_server().generate({"label": "tulip", "seed": 1}, accept="image/png").content)
    server = start_server(settings=Settings(response_ms=0, results_bytes=int(2.5 * size)))
    jobs = jobs_of(server)
    made = [jobs.ended(jobs.accepted(seed=1)) for _ in range(3)]
    eventually(lambda: jobs.picture(made[0]).status_code == 410)
    assert [jobs.picture(job).status_code for job in made] == [410, 200, 200]
    assert server.metric("elit_job_results_bytes") <= 2.5 * size


def test_a_failure_is_told(start_server: Any, jobs_of: Any) -> None:
    class Broken(Executor):
        def launch(self, pictures: Any, kind: Any) -> Any:
            if pictures[0].has_caller:
                raise RuntimeError("broken")
            return super().launch(pictures, kind)

    jobs = jobs_of(start_server(executor=Broken))
    job = jobs.ended(jobs.accepted())
    assert job["state"] == "failed"
    assert job["error"]["status"] == 500
    assert "RuntimeError" in job["error"]["detail"]
