"""Stop now, keep what there is: of a job, and of pictures that somebody waits for."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from elit_serve.client import Client, Generation, PartialImage
from elit_serve.errors import InvalidInput, ServerProblem
from elit_serve.server.keys import digest_of, make_key
from elit_serve.server.settings import Settings

pytestmark = pytest.mark.made_by("worker", "fleet")

Eventually = Callable[[Callable[[], bool]], None]


def finish(server: Any, path: str, **headers: str) -> httpx.Response:
    answer: httpx.Response = server.client.post(f"/v1/{path}/finish", headers=headers)
    return answer


def problem(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["type"].removeprefix("urn:elit-serve:")


def test_a_job_that_runs_ends_with_less_compute(start_server: Any, stepwise: Any, eventually: Eventually) -> None:
    server = start_server(executor=stepwise)
    with Client(server.url) as client:
        job = client.jobs.create(label="rose", seed=3)
        server.executor.may_run.release()
        eventually(lambda: server.executor.num_launched == 2)
        assert client.jobs.finish(job.id).state in ("queued", "running")
        server.executor.may_run.release(9)
        done = client.jobs.wait(job.id)
        assert done.result is not None
        assert done.result.finished_early
        (image,) = done.result.images
        assert image.levels == (4, 4, 1, 1), "two were under way"
        again = server.generate({"label": "rose", "seed": 3, "levels": image.levels}, accept="image/png")
        assert again.content == client.jobs.image(job.id)
        with pytest.raises(ServerProblem, match="the job has ended: it is done") as late:
            client.jobs.finish(job.id)
        assert (late.value.status, late.value.code) == (409, "job-ended")


def test_nothing_is_kept_of_what_has_not_begun(start_server: Any, held: Any, eventually: Eventually) -> None:
    server = start_server(settings=Settings(response_ms=0, max_batch=1), executor=held)
    running, waiting = (server.client.post("/v1/jobs", json={"label": "rose"}).json()["id"] for _ in range(2))
    eventually(lambda: server.health() == {**server.health(), "running": 1, "queue_length": 1})
    assert problem(finish(server, f"jobs/{waiting}")) == (409, "not-begun")
    server.client.delete(f"/v1/jobs/{waiting}")
    assert problem(finish(server, f"jobs/{waiting}")) == (409, "job-ended")
    assert problem(finish(server, f"jobs/{'0' * 32}")) == (404, "job-not-found")
    assert finish(server, f"jobs/{running}").status_code == 202
    server.executor.may_run.set()


def test_pictures_that_somebody_waits_for_end_early_together(
    start_server: Any, stepwise: Any, eventually: Eventually
) -> None:
    """The second is begun after it was hurried, as nothing can be answered without it."""
    server = start_server(settings=Settings(response_ms=0, max_batch=1), executor=stepwise)
    with ThreadPoolExecutor(1) as callers:
        body = {"label": "rose", "seed": 3, "n": 2}
        asked = callers.submit(server.client.post, "/v1/generate", json=body, headers={"X-Request-Id": "mine"})
        eventually(lambda: server.executor.num_launched == 1)
        assert problem(finish(server, "requests/another")) == (404, "request-not-found")
        assert finish(server, "requests/mine").status_code == 202
        server.executor.may_run.release(20)
        answer = asked.result().json()
    assert answer["finished_early"]
    first, second = (image["levels"] for image in answer["images"])
    assert (first[1:], second) == ([1, 1, 1], [1, 1, 1, 1])
    assert problem(finish(server, "requests/mine")) == (404, "request-not-found")


def test_a_stream_tells_its_id_in_time(start_server: Any, stepwise: Any, eventually: Eventually) -> None:
    server = start_server(executor=stepwise)
    body = {"prompt": "rose", "stream": True, "partial_images": 1}
    with server.client.stream("POST", "/v1/images/generations", json=body) as answer:
        eventually(lambda: server.executor.num_launched == 1)
        request_id = answer.headers["X-Request-Id"]
        assert httpx.post(f"{server.url}/v1/requests/{request_id}/finish").status_code == 202
        server.executor.may_run.release(9)
        assert '"finished_early":true' in answer.read().decode()


def test_a_program_that_has_seen_enough_finishes_its_stream(
    start_server: Any, stepwise: Any, eventually: Eventually
) -> None:
    server = start_server(executor=stepwise)
    server.executor.may_run.release()
    with Client(server.url) as client:
        events = client.stream(label="rose", seed=3, partial_images=3, request_id="mine")
        assert isinstance(next(events), PartialImage)
        eventually(lambda: server.executor.num_launched == 2)
        client.finish("mine")
        server.executor.may_run.release(9)
        *_, generation = events
        assert isinstance(generation, Generation)
        assert generation.finished_early
        assert generation.images[0].levels == (4, 4, 1, 1)
        with pytest.raises(ServerProblem) as late:
            client.finish("mine")
        assert late.value.code == "request-not-found"
        with pytest.raises(InvalidInput, match="letters, digits"):
            client.generate(label="rose", request_id="not sane")


def test_only_the_key_that_asked_finishes(
    start_server: Any, stepwise: Any, eventually: Eventually, tmp_path: Path
) -> None:
    keys = [make_key(name, {"sha256": digest_of(name), "scopes": ["generate"]}) for name in ("one", "other")]
    (tmp_path / "keys.toml").write_text("\n".join(key.line() for key in keys))
    server = start_server(settings=Settings(response_ms=0, keys_file=str(tmp_path / "keys.toml")), executor=stepwise)
    own, others = ({"Authorization": f"Bearer {name}"} for name in ("one", "other"))
    job = server.client.post("/v1/jobs", json={"label": "rose"}, headers=own).json()["id"]
    eventually(lambda: server.executor.num_launched == 1)
    assert problem(finish(server, f"jobs/{job}", **others)) == (404, "job-not-found")
    assert finish(server, f"jobs/{job}", **own).status_code == 202
    with ThreadPoolExecutor(1) as callers:
        headers = {**own, "X-Request-Id": "mine"}
        asked = callers.submit(server.client.post, "/v1/generate", json={"label": "tulip"}, headers=headers)
        eventually(lambda: server.worker.num_waiting == 1)
        assert problem(finish(server, "requests/mine", **others)) == (404, "request-not-found")
        assert problem(finish(server, "requests/mine", **own)) == (409, "not-begun")
        server.executor.may_run.release(20)
        assert asked.result().json()["finished_early"] is False


def test_exact_pictures_stay_exact(start_server: Any, stepwise: Any, eventually: Eventually) -> None:
    server = start_server(executor=stepwise)
    job = server.client.post("/v1/jobs", json={"label": "rose", "budget": 0.5}).json()["id"]
    eventually(lambda: server.executor.num_launched == 1)
    assert finish(server, f"jobs/{job}").status_code == 202
    server.executor.may_run.release(9)
    with Client(server.url) as client:
        done = client.jobs.wait(job)
    assert done.result is not None
    assert set(done.result.images[0].levels) == {2}
