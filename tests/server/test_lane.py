"""What can be asked for cheaply breaks no promise: it takes turns, for a bounded share of the time."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from elit_serve.errors import Overloaded
from elit_serve.server.lane import HTTP_S, IDLE_SHARE, SHARE, Kind, Lane, kind_of
from elit_serve.server.watching.snapshots import BURST, Snapshots

ASKING = Path(__file__).with_name("asking.py")


@contextmanager
def asking(url: str, number: int, *kinds: str) -> Iterator[dict[str, dict[str, int]]]:
    """Callers who ask all the time, from when each has had an answer; how often they had which status, at the end."""
    command = [sys.executable, str(ASKING), url, str(number), *kinds]
    seen: dict[str, dict[str, int]] = {}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as callers:
        assert callers.stdout is not None
        assert callers.stdout.readline()
        try:
            yield seen
        finally:
            output, _ = callers.communicate(timeout=60)
        seen.update(json.loads(output))


@pytest.mark.slow
@pytest.mark.quiet
def test_promises_are_kept_under_callers_of_what_costs_nothing(
    shared_tiny_model_dir: Path, serve_model: Any, tmp_path: Path
) -> None:
    """40 of each kind at once; the target is four times the least that an idle server promises."""
    with serve_model(shared_tiny_model_dir, tmp_path) as url, httpx.Client(base_url=url, timeout=60) as client:
        for _ in range(5):
            client.post("/v1/generate", json={"label": "tulip"})
        least_ms = client.post("/v1/generate", json={"label": "tulip", "latency_ms": 1}).json()["min_latency_ms"]
        with asking(url, 40, "metrics", "plan", "refused", "invalid") as seen:
            answers = []
            for _ in range(30):
                answers.append(client.post("/v1/generate", json={"label": "rose", "latency_ms": 4 * least_ms}))
                time.sleep(0.05)  # callers of pictures come now and then
    kept = [answer for answer in answers if answer.status_code == 200 and answer.json()["deadline_met"]]
    assert len(kept) >= 29, [answer.status_code for answer in answers]
    assert seen["metrics"].keys() == {"200"}
    assert seen["refused"].keys() == seen["invalid"].keys() == {"422"}
    assert seen["plan"].keys() <= {"200", "503"}


def test_the_lane_rests_after_each_turn_so_that_it_has_its_share_of_the_time() -> None:
    """What took 5 ms with its HTTP leaves 20 ms to the engine, and 5 ms where there is nothing to do."""

    async def rested_s(is_busy: bool) -> float:
        lane = Lane(lambda: is_busy)
        began_s = asyncio.get_running_loop().time()
        for _ in range(20):
            await lane.passed(Kind.PLANS, 0.005 - HTTP_S)
        return asyncio.get_running_loop().time() - began_s

    assert asyncio.run(rested_s(True)) >= 0.99 * 19 * 0.005 * (1 / SHARE - 1)
    assert asyncio.run(rested_s(False)) >= 0.99 * 19 * 0.005 * (1 / IDLE_SHARE - 1)


def test_kinds_take_turns_by_the_time_that_they_have_had() -> None:
    """Cheap ones do not wait for all of the dear ones."""

    async def order() -> list[Kind]:
        lane, done = Lane(lambda: True), []

        async def ask(kind: Kind, cost_s: float) -> None:
            await lane.passed(kind, cost_s)
            done.append(kind)

        first = await lane.turn(Kind.OTHERS)
        plans = [asyncio.create_task(ask(Kind.PLANS, 0.01)) for _ in range(5)]
        await asyncio.sleep(0)
        health = [asyncio.create_task(ask(Kind.HEALTH, 0.001)) for _ in range(5)]
        await asyncio.sleep(0)
        first.end(0.0)
        await asyncio.gather(*plans, *health)
        return done

    done = asyncio.run(order())
    assert done.index(Kind.HEALTH) <= 1
    assert done[-3:] == [Kind.PLANS] * 3


def test_a_turn_that_does_not_end_holds_up_its_own_kind_only() -> None:
    async def ask() -> None:
        lane = Lane(lambda: True)
        await lane.turn(Kind.PLANS)
        await lane.passed(Kind.METRICS, 0.0)
        with pytest.raises(Overloaded, match="too many others"):
            await lane.turn(Kind.PLANS, patience_s=0.01)

    asyncio.run(ask())


def test_who_stops_waiting_leaves_no_turn_behind() -> None:
    async def ask() -> None:
        lane = Lane(lambda: False)
        first = await lane.turn(Kind.PLANS)
        gone = asyncio.create_task(lane.turn(Kind.PLANS))
        granted = asyncio.create_task(lane.turn(Kind.PLANS))
        await asyncio.sleep(0)
        gone.cancel()
        first.end(0.0)
        await asyncio.sleep(0.01)
        (await granted).end()
        await lane.passed(Kind.PLANS, 0.0)

    asyncio.run(ask())


def test_all_who_wait_get_one_snapshot_which_is_made_after_they_asked() -> None:
    made: list[int] = []
    may_end = threading.Event()

    def make() -> int:
        made.append(len(made))
        assert may_end.wait(60)
        return made[-1]

    async def ask() -> None:
        snapshots = Snapshots(make)
        first = [asyncio.create_task(snapshots.fresh()) for _ in range(3)]
        while not made:
            await asyncio.sleep(0.001)
        late = [asyncio.create_task(snapshots.fresh()) for _ in range(40)]
        await asyncio.sleep(0)
        may_end.set()
        assert await first[0] == 0
        assert set(await asyncio.gather(*late)) == {1}

    asyncio.run(ask())


def test_snapshots_are_made_a_few_times_a_second() -> None:
    made: list[int] = []

    async def ask() -> None:
        snapshots = Snapshots(lambda: made.append(1))
        began_s = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began_s + 0.6:
            await snapshots.fresh()

    asyncio.run(ask())
    assert BURST <= len(made) <= BURST + 4


def test_scrapes_are_answered_from_snapshots(server: Any) -> None:
    made: list[float] = []
    render = server.app.state.service.metrics.render

    def counted() -> bytes:
        made.append(time.monotonic())
        text: bytes = render()
        return text

    server.app.state.rendered_metrics = Snapshots(counted)
    with ThreadPoolExecutor(20) as callers:
        answers = list(callers.map(lambda _: server.client.get("/metrics"), range(100)))
    assert {answer.status_code for answer in answers} == {200}
    assert all("elit_requests_total" in answer.text for answer in answers)
    assert len(made) <= BURST + 1 + 4 * (made[-1] - made[0])


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("POST", "/v1/generate", None),
        ("GET", "/v1/generate", Kind.OTHERS),
        ("GET", "/metrics", Kind.METRICS),
        ("GET", "/liveness", Kind.HEALTH),
        ("POST", "/v1/jobs", Kind.JOBS),
        ("GET", "/openapi.json", Kind.OTHERS),
    ],
)
def test_only_requests_for_pictures_need_no_turn(server: Any, method: str, path: str, kind: Kind | None) -> None:
    assert kind_of(server.app.state.access.of(method, path).work) is kind
