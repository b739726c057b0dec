"""The load generator against real HTTP servers: arrivals that wait for nobody, callers that never rest."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest

from elit_serve.bench.load.plan import closed_calls
from elit_serve.bench.load.sender import PlannedCall, ending_of, replay, saturate
from elit_serve.client import AsyncClient
from elit_serve.clock import MonotonicClock
from elit_serve.errors import ServerProblem
from elit_serve.files.records import RequestEnding, RequestRecord
from tests.bench.conftest import THREE

Reply = tuple[int, dict[str, str], bytes]
PATIENCE_S = 20.0  # how long a server waits for what must come; reached only when a test fails


def picture(body: bytes) -> Reply:
    asked = json.loads(body)
    image = {"b64_json": base64.b64encode(b"file").decode(), "seed": asked["seed"], "level": 2, "budget": 0.5}
    answer = {"model": "m", "label": str(asked["label"]), "steps": 4, "output_format": "png", "images": [image]}
    answer |= {"queue_ms": 1.0, "compute_ms": 2.0, "encode_ms": 0.5, "total_ms": 4.0}
    return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()


def replayed(url: str, calls: list[PlannedCall]) -> tuple[RequestRecord, ...]:
    async def run() -> tuple[RequestRecord, ...]:
        async with AsyncClient(url) as client:
            return await replay(client, calls, {"budget": 0.5}, clock=MonotonicClock())

    return asyncio.run(run())


def saturated(url: str, *, callers: int, total: int) -> tuple[RequestRecord, ...]:
    async def run() -> tuple[RequestRecord, ...]:
        async with AsyncClient(url) as client:
            calls = closed_calls(subjects=THREE, seed=0)
            return await saturate(client, calls, {}, callers=callers, total=total, clock=MonotonicClock())

    return asyncio.run(run())


def together(parties: int) -> Callable[[str, bytes], Reply]:
    """A server that answers nobody before `parties` callers are waiting at once."""
    barrier = threading.Barrier(parties)

    def answer(_path: str, body: bytes) -> Reply:
        barrier.wait(PATIENCE_S)
        return picture(body)

    return answer


def test_arrivals_do_not_wait_for_answers(start_http: Any) -> None:
    """The server stalls until the last request is there, far more than any default pool of connections would let in."""
    url = start_http(together(150))
    records = replayed(url, [PlannedCall(at_s=index / 1000, label=0, seed=index) for index in range(150)])
    assert [record.ending for record in records] == [RequestEnding.DONE] * 150


def test_requests_are_sent_as_planned_and_records_come_in_their_order(start_http: Any) -> None:
    bodies: list[dict[str, object]] = []
    second_is_out = threading.Event()

    def answer(_path: str, body: bytes) -> Reply:
        asked = json.loads(body)
        bodies.append(asked)
        if asked["label"] == 0:
            second_is_out.wait(PATIENCE_S)
        return picture(body)

    async def run(url: str) -> tuple[RequestRecord, ...]:
        async with AsyncClient(url) as client:
            calls = [PlannedCall(at_s=0.0, label=0, seed=5), PlannedCall(at_s=0.02, label=2, seed=6, latency_ms=1e6)]
            replaying = asyncio.create_task(replay(client, calls, {"budget": 0.5}, clock=MonotonicClock()))
            async with asyncio.timeout(PATIENCE_S):
                while len(bodies) < 2:
                    await asyncio.sleep(0)
            second_is_out.set()
            return await replaying

    first, second = asyncio.run(run(start_http(answer)))
    assert bodies == [
        {"budget": 0.5, "label": 0, "seed": 5},
        {"budget": 0.5, "label": 2, "seed": 6, "latency_ms": 1e6},
    ]
    assert second.planned_s - first.planned_s == pytest.approx(0.02)
    assert (first.latency_ms, second.latency_ms) == (None, 1e6)
    for record in (first, second):
        assert record.planned_s <= record.sent_s <= record.ended_s
        assert (record.budget, record.queue_ms, record.compute_ms) == (0.5, 1.0, 2.0)
        assert (record.encode_ms, record.total_ms) == (0.5, 4.0)


def test_each_end_is_told_apart_with_its_reason(start_http: Any) -> None:
    problems = {
        0: (422, {"type": "urn:elit-serve:infeasible", "min_latency_ms": 150}),
        1: (503, {"type": "urn:elit-serve:overloaded", "reason": "queue_full"}),
        2: (504, {"type": "urn:elit-serve:expired"}),
        3: (500, {"type": "urn:elit-serve:generation-failed"}),
        4: (422, {"type": "urn:elit-serve:invalid-input"}),
    }

    def answer(_path: str, body: bytes) -> Reply:
        label = json.loads(body)["label"]
        if label == 5:
            return 200, {"Content-Type": "text/html"}, b"not a picture"
        if label == 6:
            return picture(body)
        status, members = problems[label]
        return status, {"Content-Type": "application/problem+json"}, json.dumps(members).encode()

    records = replayed(start_http(answer), [PlannedCall(at_s=0.0, label=label, seed=0) for label in range(7)])
    assert [(record.ending, record.reason) for record in records] == [
        (RequestEnding.REFUSED, "infeasible"),
        (RequestEnding.REFUSED, "queue_full"),
        (RequestEnding.EXPIRED, "expired"),
        (RequestEnding.FAILED, "generation-failed"),
        (RequestEnding.FAILED, "invalid-input"),
        (RequestEnding.FAILED, "unreachable"),
        (RequestEnding.DONE, None),
    ]


def test_a_rate_limit_is_a_refusal() -> None:
    assert ending_of(ServerProblem(status=429, code="rate-limited", detail="")) is RequestEnding.REFUSED


def test_a_closed_loop_keeps_its_callers_in_flight(start_http: Any) -> None:
    lock, in_flight, most = threading.Lock(), 0, 0
    release_all = together(4)

    def answer(path: str, body: bytes) -> Reply:
        nonlocal in_flight, most
        with lock:
            in_flight += 1
            most = max(most, in_flight)
        reply = release_all(path, body)
        with lock:
            in_flight -= 1
        return reply

    records = saturated(start_http(answer), callers=4, total=12)
    assert [record.ending for record in records] == [RequestEnding.DONE] * 12
    assert most == 4


def test_a_closed_loop_gives_up_what_is_not_counted_and_orders_the_rest_by_their_ends(start_http: Any) -> None:
    stalled = threading.Event()

    def answer(_path: str, body: bytes) -> Reply:
        asked = json.loads(body)["seed"]
        if asked == seeds[0]:
            stalled.wait(PATIENCE_S)
        return picture(body)

    calls = closed_calls(subjects=THREE, seed=0)
    seeds = [next(calls).seed for _ in range(10)]
    records = saturated(start_http(answer), callers=3, total=9)
    stalled.set()
    assert len(records) == 9
    assert all(record.is_done for record in records)
    ends = [record.ended_s for record in records]
    assert ends == sorted(ends)
