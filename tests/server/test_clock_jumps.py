"""The time of day jumps, as when a clock is set: what was promised is kept, and nobody waits for a day."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from elit_serve.server.settings import Settings

DAY_S = 86_400.0


@pytest.mark.parametrize("jump_s", [DAY_S, -365 * DAY_S], ids=["forward", "back"])
def test_targets_and_waits_do_not_depend_on_the_time_of_day(
    start_server: Any, held: Any, eventually: Any, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    server = start_server(settings=Settings(response_ms=0, max_queue=2), executor=held)
    with ThreadPoolExecutor(3) as callers:
        running = callers.submit(server.generate, {"label": "tulip", "latency_ms": 60_000})
        eventually(lambda: server.health()["running"] == 1)
        wishes = {"label": "tulip", "latency_ms": 50_000, "best_effort": True}
        waiting = [callers.submit(server.generate, wishes) for _ in range(2)]
        eventually(lambda: server.health()["queue_length"] == 2)
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + jump_s)
        refusal = server.generate({"label": "tulip"})
        assert (refusal.status_code, refusal.json()["reason"]) == (503, "queue_full")
        assert 1 <= int(refusal.headers["Retry-After"]) <= 60
        server.executor.may_run.set()
        answers = [answer.result(60).json() for answer in (running, *waiting)]
    assert [answer["deadline_met"] for answer in answers] == [True] * 3
    assert all(0 <= answer["total_ms"] < 50_000 for answer in answers)
    created = server.client.post("/v1/images/generations", json={"prompt": "tulip"}).json()["created"]
    assert created == pytest.approx(real() + jump_s, abs=60), "what is told as the time of day follows it"
    assert server.metric("elit_promises_missed_total") == 0
