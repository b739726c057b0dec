"""What ends while others wait for it: all are told, jobs wait for the next server, and no replica dies of it."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
from fleet_link import LocalLink
from serving import COST, AsPredicted, Held, as_a_fleet, running_models

from elit_serve.clock import MonotonicClock, VirtualClock
from elit_serve.engine.observer import Observer
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import EngineStopped
from elit_serve.fleet import processes
from elit_serve.fleet.cluster import ClusterLost
from elit_serve.fleet.fleet import LOST_S, NOBODY_S, Fleet
from elit_serve.fleet.loop_thread import LoopThread
from elit_serve.fleet.messages import HowAreYou, Published, Refused, Reply, SentOrder, Taken
from elit_serve.fleet.processes import Ingresses, Place
from elit_serve.fleet.replica import Replica
from elit_serve.http.schemas import GenerateRequest
from elit_serve.server.engines import LoadedModel, num_slots
from elit_serve.server.service import order_for
from elit_serve.server.settings import Settings

SETTINGS = Settings(response_ms=0)


async def nothing() -> None:
    """What some close besides."""


def open_model(pipeline: Pipeline, executor: type[AsPredicted] = AsPredicted) -> LoadedModel:
    slots = executor(pipeline, num_slots=num_slots(SETTINGS))
    slots.cost = COST
    return LoadedModel(pipeline=pipeline, executor=slots, cost=COST)


# An ingress


class Unanswering(LocalLink):
    """Replicas tell how they are, and never whether they take an order. offers: those that they were made."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        super().__init__(replicas)
        self.offers = threading.Semaphore(0)

    async def make(self, replica: str, sent: SentOrder) -> AsyncIterator[Reply]:  # noqa: ARG002
        self.offers.release()
        await asyncio.Event().wait()
        yield Refused  # type: ignore[misc]  # never; it makes this an iterator


def test_who_waits_for_a_replica_when_the_server_ends_is_told_and_a_job_stays_queued(tiny_pipeline: Pipeline) -> None:
    model = open_model(tiny_pipeline)
    with (
        ThreadPoolExecutor(1) as callers,
        as_a_fleet(model, SETTINGS, Unanswering) as fleet,
        running_models([model], SETTINGS, [fleet]) as server,
    ):
        job = server.client.post("/v1/jobs", json={"label": "rose"}).json()
        assert fleet.link.offers.acquire(timeout=60)
        answer = callers.submit(server.generate, {"label": "rose"})
        assert fleet.link.offers.acquire(timeout=60)
        server.worker.stop()
        server.app.state.jobs.stop()
        told = answer.result(60)
        assert (told.status_code, told.json()["type"]) == (503, "urn:elit-serve:engine-stopped")
        assert server.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"


class Orphaned(Unanswering):
    """Of a cluster that is lost once the test says so."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        super().__init__(replicas)
        self.is_lost = threading.Event()

    async def publish(self, *, keeps_account: bool) -> list[Published]:
        if self.is_lost.is_set():
            raise ClusterLost("Ray is gone")
        return await super().publish(keeps_account=keeps_account)


def test_when_its_ray_is_gone_everybody_is_told_at_once_and_a_job_stays_queued(tiny_pipeline: Pipeline) -> None:
    model = open_model(tiny_pipeline)
    with (
        ThreadPoolExecutor(1) as callers,
        as_a_fleet(model, SETTINGS, Orphaned) as fleet,
        running_models([model], SETTINGS, [fleet]) as server,
    ):
        assert server.client.get("/readiness").status_code == 200
        job = server.client.post("/v1/jobs", json={"label": "rose"}).json()
        assert fleet.link.offers.acquire(timeout=60)
        answer = callers.submit(server.generate, {"label": "rose"})
        assert fleet.link.offers.acquire(timeout=60)
        fleet.link.is_lost.set()
        told = answer.result(60)
        assert (told.status_code, told.json()["type"]) == (503, "urn:elit-serve:engine-stopped")
        assert server.worker.has_died
        assert server.client.get("/readiness").status_code == 503
        late = server.generate({"label": "rose"})
        assert (late.status_code, late.json()["type"]) == (503, "urn:elit-serve:engine-stopped")
        server.worker.ended.result(60)
        server.app.state.jobs.stop()
        assert server.client.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued"


class Unreachable(LocalLink):
    """Nobody can be asked how he is, for as long as the clock says."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__({})
        self._clock = clock

    async def publish(self, *, keeps_account: bool) -> list[Published]:  # noqa: ARG002
        self._clock.advance(LOST_S + 1)
        raise ConnectionError("the replicas are gone")


def test_who_is_told_that_the_fleet_has_died_may_still_ask_it() -> None:
    clock, thread = VirtualClock(), LoopThread("elit-fleet")
    link = Unreachable(clock)
    fleet = Fleet(link, thread, [], clock=clock, observer=Observer())
    asked: Future[str] = Future()
    fleet.ended.add_done_callback(lambda _: asked.set_result(thread.run(asyncio.sleep(0, "an answer"))))
    fleet.start()
    assert asked.result(60) == "an answer"
    assert fleet.has_died
    thread.close(link.close)


class Nobody(LocalLink):
    """No replica runs, for as long as the clock says."""

    def __init__(self, clock: VirtualClock) -> None:
        super().__init__({})
        self._clock = clock
        self.num_asked = 0

    async def publish(self, *, keeps_account: bool) -> list[Published]:  # noqa: ARG002
        self.num_asked += 1
        self._clock.advance(5 * LOST_S)
        return []


def test_a_fleet_waits_for_a_replica_that_loads_for_minutes_and_not_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    clock, thread = VirtualClock(), LoopThread("elit-fleet")
    link = Nobody(clock)
    fleet = Fleet(link, thread, [], clock=clock, observer=Observer())
    fleet.start()
    fleet.ended.result(60)
    assert fleet.has_died
    assert NOBODY_S < link.num_asked * 5 * LOST_S <= NOBODY_S + 5 * LOST_S
    assert "no replica has come for 30 minutes; this server ends" in caplog.text
    thread.close(link.close)


def test_a_server_that_ends_starts_no_process_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started, python = list[int](), tmp_path / "python"
    python.write_text("#!/bin/sh\nread -r place\nexit 1\n", encoding="utf-8")  # an ingress that ends by itself
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))

    def place(index: int) -> Place:
        started.append(index)
        return Place(index=index, settings={}, listener=2, ray_address="", replicas="", folder="")

    ingresses = Ingresses(1, place)

    class AtThat(logging.Handler):
        def emit(self, _: logging.LogRecord) -> None:
            ingresses.end()

    log, at_that = logging.getLogger(processes.__name__), AtThat(logging.ERROR)
    log.addHandler(at_that)
    ingresses.watch(lambda: None)
    log.removeHandler(at_that)
    ingresses.wait(60)
    assert started == [0]


def test_processes_are_not_started_for_replicas_that_are_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nread -r place\nexec sleep 600\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    place = Place(index=0, settings={}, listener=2, ray_address="", replicas="", folder="")
    ingresses = Ingresses(1, lambda _: place)

    def gone() -> None:
        raise ClusterLost("Ray is gone")

    with pytest.raises(ClusterLost):
        ingresses.watch(gone)
    ingresses.end()
    ingresses.wait(60)


def test_a_process_that_is_started_while_the_server_is_told_to_end_ends_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python, before = tmp_path / "python", tmp_path / "before"
    first_ends = f'if [ ! -e "{before}" ]; then touch "{before}"; exit 1; fi'
    python.write_text(f"#!/bin/sh\nread -r place\n{first_ends}\nexec sleep 600\n", encoding="utf-8")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(processes, "PAUSE_S", 0.0)
    started = list[subprocess.Popen[str]]()

    class Noted(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Noted)

    def place(index: int) -> Place:
        if started:
            ingresses.end()
        return Place(index=index, settings={}, listener=2, ray_address="", replicas="", folder="")

    ingresses = Ingresses(1, place)
    ingresses.watch(lambda: None)
    ingresses.wait(30)
    for process in started:
        process.stdout.close()  # type: ignore[union-attr]
    assert [each.returncode for each in started] == [1, -signal.SIGTERM]


# Its loop


def test_who_waits_for_a_loop_that_is_closed_is_told() -> None:
    thread, begun = LoopThread("test"), threading.Event()

    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as callers:
        waiting = callers.submit(thread.run, endless())
        assert begun.wait(60)
        thread.close(nothing)
        with pytest.raises(EngineStopped):
            waiting.result(60)


def test_what_comes_to_a_loop_while_it_is_closed_is_refused() -> None:
    thread, refusals = LoopThread("test"), list[EngineStopped]()

    async def begins_more() -> None:
        with pytest.raises(EngineStopped) as refused:
            await asyncio.to_thread(thread.run, nothing())
        refusals.append(refused.value)

    thread.close(begins_more)
    thread.close(nothing)
    assert len(refusals) == 1


def test_what_does_not_answer_in_time_is_given_up() -> None:
    thread, given_up = LoopThread("test"), threading.Event()

    async def endless() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()

    with pytest.raises(EngineStopped):
        thread.run(endless(), timeout_s=0)
    assert given_up.wait(60)
    thread.close(nothing)


# A replica


@dataclass(frozen=True)
class HeldReplica:
    replica: Replica
    executor: Any

    def sent(self) -> SentOrder:
        clock = MonotonicClock()
        order = order_for(self.replica.engine, GenerateRequest(label="rose"), arrived_s=clock.now())
        return SentOrder.of(order, clock.now(), order_id="one", wants_steps=True)

    @property
    def num_pictures(self) -> int:
        worker = self.replica.engine.worker
        return worker.num_waiting + worker.num_running


@pytest.fixture
def held_replica(tiny_pipeline: Pipeline) -> Iterator[HeldReplica]:
    """One that runs no step before the test says so."""
    model = open_model(tiny_pipeline, Held)
    replica = Replica("first", model, SETTINGS, MonotonicClock(), transit_ms=0)
    replica.start()
    yield HeldReplica(replica, model.executor)
    model.executor.may_run.set()
    replica.drain(0)


async def listen(replica: Replica, sent: SentOrder, hears: Callable[[Reply], None]) -> None:
    async for reply in replica.make(sent):
        hears(reply)


def all_replies(held: HeldReplica) -> list[Reply]:
    replies = list[Reply]()
    asyncio.run(listen(held.replica, held.sent(), replies.append))
    return replies


def test_a_replica_outlives_who_listens_to_its_steps(held_replica: HeldReplica, eventually: Any) -> None:
    thread = LoopThread("test")
    thread.begin(listen(held_replica.replica, held_replica.sent(), lambda _: None))
    eventually(lambda: held_replica.replica.engine.worker.num_running == 1)
    thread.close(nothing)
    held_replica.executor.may_run.set()
    assert isinstance(all_replies(held_replica)[-1], Outcome)


@dataclass(frozen=True, kw_only=True)
class SlowlyAdmitted(SentOrder):
    """A replica that considers it goes on when the test says so."""

    is_considered: threading.Event
    may_go_on: threading.Event

    def received(self, now_s: float, open_plans: Mapping[str, OpenPlans], extra_ms: float) -> Order:
        self.is_considered.set()
        assert self.may_go_on.wait(60)
        return super().received(now_s, open_plans, extra_ms)


def test_what_is_admitted_for_who_has_gone_is_given_up(held_replica: HeldReplica, eventually: Any) -> None:
    values = {field.name: getattr(held_replica.sent(), field.name) for field in fields(SentOrder)}
    sent = SlowlyAdmitted(**values, is_considered=threading.Event(), may_go_on=threading.Event())
    thread = LoopThread("test")
    thread.begin(listen(held_replica.replica, sent, lambda _: None))
    assert sent.is_considered.wait(60)
    thread.close(nothing)
    sent.may_go_on.set()
    thread, next_one = LoopThread("test"), list[Reply]()
    thread.begin(listen(held_replica.replica, held_replica.sent(), next_one.append))
    eventually(lambda: len(next_one) == 1)
    assert isinstance(next_one[0], Taken)
    assert held_replica.num_pictures == 1
    thread.close(nothing)


def test_a_replica_that_has_been_drained_refuses(held_replica: HeldReplica) -> None:
    sent = held_replica.sent()
    held_replica.replica.drain(0)
    (refusal,) = all_replies(held_replica)
    assert isinstance(refusal, Refused)
    assert isinstance(refusal.error, EngineStopped)
    assert isinstance(asyncio.run(held_replica.replica.forecast(sent)), EngineStopped)


def test_a_replica_that_has_been_drained_tells_what_it_has_counted(held_replica: HeldReplica) -> None:
    held_replica.executor.may_run.set()
    assert isinstance(all_replies(held_replica)[-1], Outcome)
    held_replica.replica.drain(0)
    last = asyncio.run(held_replica.replica.publish(HowAreYou(keeps_account=True)))
    assert not last.is_ready
    assert last.counters.granted_steps > 0
    assert last.events
