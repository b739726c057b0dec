"""What goes wrong stays with the request that it happened to, has its own status, and is counted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import load_file

from elit_serve.engine.checkpoint import write_checkpoint
from elit_serve.engine.executor.slots import Executor, RunningStep
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.files.config import ModelConfig
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.settings import Settings

pytestmark = pytest.mark.made_by("worker", "fleet")

CHEAP = CostTable(
    steps_ms={(StepKind("32x32", level, weak), 1): 1.0 * level for level in (1, 2, 3, 4) for weak in (None, 1, level)},
    overhead_ms=1.0,
)


class Held(Executor):
    """Runs a step only with the test's leave."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.has_started = threading.Semaphore(0)
        self.may_run = threading.Semaphore(0)

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:  # the warm-up is not held
            self.has_started.release()
            assert self.may_run.acquire(timeout=60)
        return super().launch(pictures, kind)


def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """For what another thread does in its own time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)  # a busy loop would keep the other from it


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    return dict(answer.json())


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    """Threads for requests that take a while."""
    with ThreadPoolExecutor(8) as pool:
        yield pool


def ask(callers: ThreadPoolExecutor, server: Any, **body: object) -> Future[httpx.Response]:
    return callers.submit(server.generate, {"label": "tulip", **body})


def ended(server: Any, outcome: str) -> float:
    return float(server.metric(f'elit_generations_total{{outcome="{outcome}"}}'))


def test_nan_fails_its_own_pictures_only(
    start_server: Any, shared_tiny_model_dir: Path, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    weights = load_file(shared_tiny_model_dir / "model.safetensors")
    weights["class_embed.weight"][1] = torch.nan  # the rose is broken
    write_checkpoint(tmp_path / "broken", tiny_config, weights)
    server = start_server(Pipeline.load(tmp_path / "broken", device="cpu"))
    before = server.generate({"label": "tulip", "seed": 1, "budget": 1}).json()["images"][0]["b64_json"]
    failure = problem_of(server.generate({"label": "rose", "seed": 1, "n": 2}), 500)
    assert "NaN" in failure["detail"]
    assert server.generate({"label": "tulip", "seed": 1, "budget": 1}).json()["images"][0]["b64_json"] == before
    assert server.client.get("/health").status_code == 200
    assert server.metric('elit_requests_total{outcome="failed",route="/v1/generate"}') == 1
    assert ended(server, "failed") == 1
    assert server.metric('elit_image_failures_total{cause="nan"}') >= 1


class FailsAtLevel3(Executor):
    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if kind.level == 3:
            raise RuntimeError("a kernel failed")
        return super().launch(pictures, kind)


def test_a_failing_step_fails_its_own_requests_only(start_server: Any) -> None:
    server = start_server(executor=FailsAtLevel3)
    assert "RuntimeError" in problem_of(server.generate({"label": "tulip", "budget": 0.75}), 500)["detail"]
    assert server.generate({"label": "tulip", "budget": 0.5}).status_code == 200
    assert server.metric('elit_image_failures_total{cause="step"}') == 1


class RoomForTwo(Executor):
    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if len(pictures) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return super().launch(pictures, kind)


def test_out_of_memory_halves_the_batch_and_fails_nobody(start_server: Any) -> None:
    server = start_server(executor=RoomForTwo)
    answer = server.generate({"label": "tulip", "n": 4, "budget": 0.5})
    assert [image["levels"] for image in answer.json()["images"]] == [[2, 2, 2, 2]] * 4
    assert server.metric('elit_cohort_size_bucket{le="2.0"}') == 6  # three steps of two for each half
    assert server.metric("elit_cohort_size_count") == 7


class LostDevice(Executor):
    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return super().launch(pictures, kind)


@pytest.mark.made_by("worker")
def test_a_dead_engine_is_reported_and_takes_nothing(start_server: Any) -> None:
    server = start_server(executor=LostDevice)
    routes = ("/health", "/liveness", "/readiness", "/v2/health/live", "/v2/health/ready")
    answers = [server.generate({"label": "tulip"}) for _ in range(2)]
    for answer in (*answers, *map(server.client.get, routes)):
        assert problem_of(answer, 503)["reason"] == "stopped"
        assert int(answer.headers["Retry-After"]) > 0
    assert ended(server, "failed") == 1
    assert server.metric('elit_refusals_total{reason="stopped"}') == 1


def test_a_full_queue_refuses_with_a_time_to_come_back(start_server: Any, callers: ThreadPoolExecutor) -> None:
    server = start_server(settings=Settings(max_queue=1), executor=Held)
    running = ask(callers, server, budget=1)
    server.executor.has_started.acquire()
    queued = ask(callers, server, budget=1)
    eventually(lambda: server.health()["queue_length"] == 1)
    refusal = server.generate({"label": "tulip"})
    assert problem_of(refusal, 503)["reason"] == "queue_full"
    assert int(refusal.headers["Retry-After"]) >= 1
    server.executor.may_run.release(100)
    assert running.result().status_code == queued.result().status_code == 200
    assert server.generate({"label": "tulip"}).status_code == 200
    assert server.metric('elit_refusals_total{reason="queue_full"}') == 1
    assert ended(server, "refused") == 1


def test_a_promise_that_others_stand_in_the_way_of_is_refused_with_a_time_to_come_back(
    start_server: Any, callers: ThreadPoolExecutor
) -> None:
    server = start_server(executor=Held)
    promised = ask(callers, server, budget=1, latency_ms=60_000, steps=100)  # takes 51 s in the table
    server.executor.has_started.acquire()
    refusal = server.generate({"label": "tulip", "budget": 1, "latency_ms": 60_000, "steps": 100})
    assert problem_of(refusal, 503)["reason"] == "overloaded"
    assert 1 <= int(refusal.headers["Retry-After"]) <= 60
    wish = ask(callers, server, budget=1, latency_ms=60_000, steps=100, best_effort=True)
    server.executor.may_run.release(1000)
    assert promised.result().json()["promised"] is True
    assert wish.result().json()["promised"] is False
    assert server.metric('elit_refusals_total{reason="overloaded"}') == 1
    assert server.metric("elit_promised_total") == server.metric("elit_promises_kept_total") == 1


def test_a_promise_that_could_not_be_kept_is_told(start_server: Any, callers: ThreadPoolExecutor) -> None:
    server = start_server(executor=Held, cost=CHEAP)
    promised = ask(callers, server, latency_ms=60_000)
    server.executor.has_started.acquire()
    server.clock.advance(61)  # while the device stands still
    server.executor.may_run.release(100)
    problem = problem_of(promised.result(), 504)
    assert problem["type"] == "urn:elit-serve:deadline-exceeded"
    assert "60000" in problem["detail"]
    assert ended(server, "expired") == 1
    assert server.metric("elit_promises_missed_total") == 1
    assert server.metric('elit_requests_total{outcome="expired",route="/v1/generate"}') == 1


def test_a_caller_who_leaves_is_forgotten_whether_he_waits_or_runs(
    start_server: Any, callers: ThreadPoolExecutor
) -> None:
    server = start_server(executor=Held)
    server.leave({"label": "tulip", "steps": 1000}, once=lambda: server.health()["running"] == 1)
    server.leave({"label": "tulip", "steps": 1000}, once=lambda: server.health()["queue_length"] == 1)
    eventually(lambda: ended(server, "cancelled") == 2)
    assert server.health()["queue_length"] == server.health()["running"] == 0
    last = ask(callers, server, budget=0.5)
    server.executor.may_run.release(5)  # one step for him who left, four for the last
    assert last.result().status_code == 200
    assert server.executor.num_free == server.executor.num_slots
    assert server.metric('elit_requests_total{outcome="cancelled",route="/v1/generate"}') == 2


def test_the_server_answers_while_a_picture_is_being_made(start_server: Any, callers: ThreadPoolExecutor) -> None:
    server = start_server(executor=Held)
    picture = ask(callers, server)
    server.executor.has_started.acquire()
    assert server.health()["running"] == 1
    assert server.client.get("/v1/models").status_code == 200
    assert server.client.get("/readiness").status_code == 200
    assert not picture.done()
    server.executor.may_run.release(4)
    assert picture.result().status_code == 200


def test_a_draining_server_says_so_takes_nothing_and_finishes_what_it_has(
    start_server: Any, callers: ThreadPoolExecutor
) -> None:
    server = start_server(executor=Held)
    picture = ask(callers, server, latency_ms=60_000)
    server.executor.has_started.acquire()
    drained = callers.submit(server.worker.drain, 60)
    eventually(lambda: server.health()["status"] == "draining")
    for route in ("/readiness", "/v2/health/ready"):
        assert problem_of(server.client.get(route), 503)["reason"] == "stopped"
    for route in ("/liveness", "/v2/health/live"):
        assert server.client.get(route).status_code == 200
    refusal = server.generate({"label": "tulip"})
    assert problem_of(refusal, 503)["reason"] == "stopped"
    assert int(refusal.headers["Retry-After"]) > 0
    server.executor.may_run.release(100)
    assert picture.result().json()["deadline_met"] is True
    drained.result(60)
