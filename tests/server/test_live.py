"""/load and /v1/live: what the server is doing now, told once and again and again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import httpx
import pytest

from elit_serve.server.watching.live import PERIOD_S, LiveFeed, Load, Totals


def snapshots(server: Any) -> Iterator[dict[str, Any]]:
    with httpx.stream("GET", f"{server.url}/v1/live", timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        for line in lines:
            assert line == "event: load"
            yield json.loads(next(lines).removeprefix("data: "))
            assert next(lines) == ""


def test_an_idle_server_says_so(server: Any) -> None:
    load = server.client.get("/load").json()
    assert (load["status"], load["server_load"], load["in_flight"]) == ("ok", 0, [])
    assert load["queue_limit"] == 64


def test_totals_tell_what_was_done(start_server: Any) -> None:
    server = start_server()
    server.generate({"label": "tulip", "budget": 0.5, "n": 2})
    server.generate({"label": "tulip", "latency_ms": 60_000})
    server.generate({"label": "tulip", "latency_ms": 10})
    totals = server.client.get("/load").json()["totals"]
    assert totals["pictures"] == 3
    assert (totals["promises_kept"], totals["promises_missed"]) == (1, 0)
    assert (totals["granted_steps"], totals["granted_budget"]) == (4, 4.0), "pinned steps are not the server's choice"
    stepping_s = 4 * 0.5 + 4 * 0.25 * 2  # two pictures in a step cost twice as much
    assert stepping_s < totals["device_s"] < stepping_s + 2, "and decoding is measured"
    assert totals["spent"]["(no key)"]["device_s"] == pytest.approx(totals["device_s"])
    assert totals["spent"]["(no key)"]["gflops"] == totals["gflops"] > 0
    assert {reason for reason, count in totals["refusals"].items() if count} == {"infeasible"}


def test_everybody_who_watches_sees_what_is_in_flight(start_server: Any, held: Any, eventually: Any) -> None:
    server = start_server(executor=held)
    with ThreadPoolExecutor(3) as callers:
        first = callers.submit(server.generate, {"label": "tulip", "budget": 1, "latency_ms": 60_000})
        eventually(lambda: server.health()["running"] == 1)
        second = callers.submit(server.generate, {"label": "rose"})
        eventually(lambda: server.health()["queue_length"] == 1)
        seen = list(islice(snapshots(server), 2))[-1]
        assert (seen["server_load"], seen["running"], seen["queue_length"]) == (2, 1, 1)
        runs, waits = seen["in_flight"]
        assert (waits["label"], waits["state"], waits["levels"], waits["promised"]) == ("rose", "waiting", [], False)
        assert (runs["label"], runs["steps"], runs["promised"]) == ("tulip", 4, True)
        assert runs["age_ms"] + runs["left_ms"] == pytest.approx(60_000, abs=1)
        server.executor.may_run.set()
        assert first.result().status_code == second.result().status_code == 200
        assert server.client.get("/load").json()["server_load"] == 0


def test_the_stream_ends_with_the_engine(start_server: Any) -> None:
    server = start_server()
    watched = snapshots(server)
    assert next(watched)["status"] == "ok"
    server.worker.stop()
    assert [snapshot["status"] for snapshot in watched][-1] == "stopped"


def test_a_snapshot_is_made_once_for_all_and_never_for_nobody() -> None:
    made = []

    def make() -> Load:
        made.append(len(made))
        counts = dict.fromkeys(("pictures", "promises_kept", "promises_missed", "granted_steps"), 0)
        totals = Totals(**counts, granted_budget=0, device_s=0, gflops=0, spent={}, refusals={})
        sizes = dict.fromkeys(("server_load", "running", "queue_length", "queue_limit"), 0)
        return Load(status="ok", at_s=len(made), **sizes, correction=1, totals=totals, in_flight=[])

    async def two_of(feed: LiveFeed) -> list[str]:
        watched = feed.events()
        return [await anext(watched), await anext(watched)]

    async def watch() -> None:
        feed = LiveFeed(make)
        seen = await asyncio.gather(*(two_of(feed) for _ in range(3)))
        assert seen[0] == seen[1] == seen[2]
        assert len(made) == 2
        await asyncio.sleep(2 * PERIOD_S)
        assert len(made) == 2

    asyncio.run(watch())
