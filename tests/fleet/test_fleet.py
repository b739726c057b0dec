"""Two replicas behind one server: who is asked, what happens when one refuses, and when one is lost."""

from __future__ import annotations

import base64
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fleet_link import LocalLink
from serving import COST, AsPredicted, Held, RunningServer, UnhurriedClock, running_models

from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import ElitError, EngineStopped, Infeasible, InvalidInput, Overloaded
from elit_serve.fleet.fleet import least
from elit_serve.fleet.handshake import NONCE_BYTES, PROOF_BYTES
from elit_serve.fleet.line import Line
from elit_serve.fleet.link import ReplicaLost
from elit_serve.fleet.loop_thread import LoopThread
from elit_serve.fleet.model import FleetModel
from elit_serve.fleet.replica import Replica
from elit_serve.fleet.run import of_replica, serve
from elit_serve.scheduler import CostTable
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.setting_sources import read_settings
from elit_serve.server.settings import Settings

NAMES = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class RunningFleet:
    server: RunningServer
    link: LocalLink
    thread: LoopThread
    replicas: dict[str, Replica]
    executors: dict[str, Any]

    def holders(self) -> list[str]:
        """Which replicas have pictures."""
        return [name for name, each in self.replicas.items() if each.engine.worker.num_running > 0]


StartFleet = Callable[..., RunningFleet]


@pytest.fixture
def start_fleet(tiny_pipeline: Pipeline) -> Iterator[StartFleet]:
    """Starts two replicas of the tiny model, and a server that knows them by messages alone."""
    with ExitStack() as stack:

        def start(
            executor: type[Executor] = AsPredicted,
            cost: CostTable = COST,
            clock: Clock | None = None,
            **settings: Any,
        ) -> RunningFleet:
            clock, wanted = clock or MonotonicClock(), Settings(response_ms=0, **settings)
            models, replicas = {}, {}
            for name in NAMES:
                slots = executor(tiny_pipeline, num_slots=num_slots(wanted))
                slots.cost = cost  # type: ignore[attr-defined]
                models[name] = LoadedModel(pipeline=tiny_pipeline, executor=slots, cost=cost)
                replicas[name] = Replica(name, models[name], wanted, clock, transit_ms=0)
                replicas[name].start()
                stack.callback(replicas[name].drain, 0)
            link, thread = LocalLink(replicas), LoopThread("elit-fleet")
            stack.callback(thread.close, link.close)
            model = FleetModel(link=link, thread=thread, facts=thread.run(link.facts_of_all()))
            server = stack.enter_context(running_models(list(models.values()), wanted, [model], clock))
            executors = {name: each.executor for name, each in models.items()}
            return RunningFleet(server=server, link=link, thread=thread, replicas=replicas, executors=executors)

        yield start


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def release(fleet: RunningFleet) -> None:
    for executor in fleet.executors.values():
        executor.may_run.set()


def is_taken(fleet: RunningFleet) -> bool:
    """Whether one replica is making something, and the server has heard that it took it."""
    return len(fleet.holders()) == 1 and fleet.link.replied.total() > 0


def lost(fleet: RunningFleet, fate: str) -> float:
    return fleet.server.metric(f'elit_lost_orders_total{{fate="{fate}"}}')


def file_of(answer: httpx.Response) -> bytes:
    assert answer.status_code == 200, answer.text
    return base64.b64decode(answer.json()["images"][0]["b64_json"])


def test_two_requests_at_a_time_are_made_by_two_replicas(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held)
    answers = [callers.submit(fleet.server.generate, {"label": "tulip", "seed": seed}) for seed in (1, 2)]
    eventually(lambda: fleet.holders() == list(NAMES))
    assert fleet.server.health()["running"] == 2
    release(fleet)
    assert len({file_of(answer.result()) for answer in answers}) == 2


def test_each_replica_has_metrics_of_its_own_for_as_long_as_it_is_there(
    start_fleet: StartFleet, eventually: Any
) -> None:
    fleet = start_fleet(replicas="2-5", max_queue=7)
    assert fleet.server.generate({"label": "tulip", "latency_ms": 50_000}).status_code == 200
    eventually(lambda: sum(of_each(fleet, "elit_replica_promises_kept_total")) == 1)
    assert of_each(fleet, "elit_replica_ready") == [1, 1]
    assert sum(of_each(fleet, "elit_replica_granted_budget_count")) == 4  # steps
    assert max(of_each(fleet, "elit_replica_granted_budget_sum")) == 4
    numbers = [fleet.server.metric(f"elit_replicas{which}") for which in ("", "_min", "_max")]
    assert numbers == [2, 2, 5]
    assert fleet.server.metric("elit_queue_limit") == 14
    del fleet.link.replicas["first"]
    eventually(lambda: of_each(fleet, "elit_replica_ready") == [1])
    assert fleet.server.metric("elit_replicas") == 1


def of_each(fleet: RunningFleet, metric: str) -> list[float]:
    """The values of a metric that replicas have."""
    text = fleet.server.client.get("/metrics").text
    return [float(value) for value in re.findall(rf"^{metric}{{.*}} (\S+)$", text, re.MULTILINE)]


def test_who_is_refused_by_one_is_taken_by_the_other(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held, clock=UnhurriedClock())
    target = {"label": "tulip", "budget": 1.0, "latency_ms": 3500}  # a picture alone takes three seconds
    taken = [callers.submit(fleet.server.generate, target) for _ in NAMES]
    eventually(lambda: fleet.holders() == list(NAMES))
    refusal = fleet.server.generate(target)
    assert refusal.status_code == 503, refusal.text
    assert refusal.json()["reason"] == "overloaded"
    assert refusal.json()["retry_after_ms"] > 0
    release(fleet)
    assert [answer.result().status_code for answer in taken] == [200, 200]


def test_a_lost_replica_s_picture_is_made_again_with_the_same_bytes(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held)
    body = {"label": "rose", "seed": 5, "latency_ms": 50_000, "budget": 0.5}
    answer = callers.submit(fleet.server.generate, body)
    eventually(lambda: is_taken(fleet))
    (holder,) = fleet.holders()
    del fleet.link.replicas[holder]
    release(fleet)
    first = file_of(answer.result())
    assert first == file_of(fleet.server.generate(body))
    assert fleet.server.metric('elit_generations_total{outcome="done"}') == 2


def test_where_no_replica_is_left_callers_are_told_at_once(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held)
    answer = callers.submit(fleet.server.generate, {"label": "rose"})
    eventually(lambda: is_taken(fleet))
    fleet.link.replicas.clear()
    release(fleet)
    told = answer.result(30)
    assert (told.status_code, told.json()["type"]) == (503, "urn:elit-serve:engine-stopped")
    eventually(lambda: fleet.server.client.get("/readiness").status_code == 503)
    assert fleet.server.client.get("/liveness").status_code == 200


def test_what_a_silent_replica_has_is_made_by_another(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held)
    body = {"label": "rose", "seed": 5, "latency_ms": 50_000, "budget": 0.5}
    answer = callers.submit(fleet.server.generate, body)
    eventually(lambda: is_taken(fleet))
    (holder,) = fleet.holders()
    fleet.link.hanging.add(holder)
    eventually(lambda: lost(fleet, "made_again") == 1)
    release(fleet)
    first = file_of(answer.result())
    fleet.link.hanging.clear()
    assert first == file_of(fleet.server.generate(body))


def test_a_promise_is_broken_where_too_little_time_is_left(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    clock = UnhurriedClock()
    fleet = start_fleet(executor=Held, clock=clock)
    answer = callers.submit(fleet.server.generate, {"label": "rose", "latency_ms": 2500})  # alone it takes 1500
    eventually(lambda: is_taken(fleet))
    clock.advance(1.2)
    fleet.link.hanging.add(fleet.holders()[0])
    told = answer.result(30)
    assert (told.status_code, told.json()["type"]) == (503, "urn:elit-serve:engine-stopped")
    assert lost(fleet, "no_room") == 1
    release(fleet)


def test_who_does_not_answer_an_offer_is_passed_over(start_fleet: StartFleet, callers: ThreadPoolExecutor) -> None:
    fleet = start_fleet()
    fleet.link.hanging.add("first")
    answers = [callers.submit(fleet.server.generate, {"label": "rose"}) for _ in range(3)]
    assert [answer.result().status_code for answer in answers] == [200] * 3


def test_a_moment_without_any_replica_is_waited_for(start_fleet: StartFleet, callers: ThreadPoolExecutor) -> None:
    fleet = start_fleet()
    gone = dict(fleet.link.replicas)
    fleet.link.replicas.clear()
    answer = callers.submit(fleet.server.generate, {"label": "rose"})
    with pytest.raises(TimeoutError):
        answer.result(0.5)
    fleet.link.replicas.update(gone)
    file_of(answer.result())


def test_a_job_on_a_lost_replica_is_done_all_the_same(start_fleet: StartFleet, eventually: Any) -> None:
    fleet = start_fleet(executor=Held)
    client = fleet.server.client
    job = client.post("/v1/jobs", json={"label": "rose", "seed": 3}).json()
    eventually(lambda: is_taken(fleet))
    del fleet.link.replicas[fleet.holders()[0]]
    release(fleet)
    eventually(lambda: client.get(f"/v1/jobs/{job['id']}").json()["state"] == "done")


def test_a_replica_that_is_to_go_finishes_what_it_has_and_takes_nothing_more(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held)
    answer = callers.submit(fleet.server.generate, {"label": "rose"})
    eventually(lambda: is_taken(fleet))
    (holder,) = fleet.holders()
    going = callers.submit(fleet.replicas[holder].drain, 60)
    eventually(lambda: fleet.server.metric("elit_replicas") == 1)
    others = [callers.submit(fleet.server.generate, {"label": "rose"}) for _ in range(3)]
    eventually(lambda: fleet.holders() == list(NAMES))
    release(fleet)
    for each in (answer, *others):
        file_of(each.result())
    going.result()
    assert lost(fleet, "made_again") == 0


def test_what_was_counted_outlives_the_replica(start_fleet: StartFleet, eventually: Any) -> None:
    fleet = start_fleet()
    file_of(fleet.server.generate({"label": "rose", "latency_ms": 50_000}))
    assert fleet.server.metric("elit_promises_kept_total") == 1
    fleet.link.replicas.clear()
    eventually(lambda: fleet.server.metric("elit_ready") == 0)
    assert fleet.server.metric("elit_promises_kept_total") == 1


def test_a_caller_who_leaves_frees_the_replica(start_fleet: StartFleet, eventually: Any) -> None:
    fleet = start_fleet(executor=Held)
    with pytest.raises(httpx.ReadTimeout):
        fleet.server.client.post("/v1/generate", json={"label": "rose", "n": 3}, timeout=1)
    release(fleet)
    eventually(lambda: sum(fleet.server.health()[name] for name in ("running", "queue_length")) == 0)


def test_who_does_not_know_a_replica_s_key_is_not_listened_to(start_fleet: StartFleet) -> None:
    fleet = start_fleet()
    address = fleet.thread.run(fleet.link.doors["first"].address())
    with pytest.raises(ReplicaLost):
        fleet.thread.run(Line.to(replace(address, key=bytes(len(address.key)))))
    with socket.create_connection((address.host, address.port), timeout=30) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n".ljust(NONCE_BYTES + PROOF_BYTES))
        while stranger.recv(100):
            pass  # until it is closed
    file_of(fleet.server.generate({"label": "rose"}))


def test_what_is_on_a_connection_that_breaks_is_made_again(
    start_fleet: StartFleet, callers: ThreadPoolExecutor, eventually: Any
) -> None:
    fleet = start_fleet(executor=Held)
    body = {"label": "rose", "seed": 5, "budget": 0.5}
    answer = callers.submit(fleet.server.generate, body)
    eventually(lambda: is_taken(fleet))
    fleet.thread.run(fleet.link.break_lines())
    eventually(lambda: lost(fleet, "made_again") == 1)
    release(fleet)
    assert file_of(answer.result()) == file_of(fleet.server.generate(body))


def test_the_refusal_that_is_told_is_the_least() -> None:
    full, crowded = Overloaded("queue_full", 3.0), Overloaded("overloaded", 2.0)
    slow, quick = Infeasible(10, 900), Infeasible(10, 600)
    assert least([full, crowded]) is crowded
    assert least([slow, quick]) is quick
    assert least([quick, full]) is full
    assert isinstance(least([]), EngineStopped)


@pytest.mark.parametrize("error", [Overloaded("queue_full", 1.5), Infeasible(10, 20, 1.5), EngineStopped("over")])
def test_an_error_is_the_same_in_another_process(error: ElitError) -> None:
    told = pickle.loads(pickle.dumps(error))  # noqa: S301 (what has just been written)
    assert (type(told), str(told), vars(told)) == (type(error), str(error), vars(error))


def test_ray_is_not_imported_where_nobody_asks_for_replicas() -> None:
    modules = "elit_serve.cli, elit_serve.guests, elit_serve.server.run, elit_serve.fleet.run, elit_serve.fleet.fleet"
    program = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("replicas", ["0", "3-2", "two", "1-", "1025", "-1"])
def test_a_number_of_replicas_that_is_none_is_refused(replicas: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"'{replicas}'")):
        read_settings({"replicas": replicas})


def test_a_model_that_is_not_there_is_found_out_before_ray_is_started() -> None:
    with pytest.raises(InvalidInput, match="'/nowhere'"):
        serve(read_settings({"model": "/nowhere", "replicas": "2"}), announce=print)


def test_replicas_are_told_no_secret_and_paths_that_hold_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    told = of_replica(read_settings({"model": "model", "replicas": "2-4", "api_key": ["good-and-long"]}))
    assert told.api_key == ()
    assert told.model == str(tmp_path / "model")
