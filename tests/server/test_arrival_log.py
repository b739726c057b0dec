"""The arrival log: what stands in it, that it stays small and never gets in the way, and that it can be replayed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest

from elit_serve.bench.simulate.arrivals import open_arrivals
from elit_serve.clock import VirtualClock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.http.schemas import GenerateRequest
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.orders import order_of
from elit_serve.server.settings import Settings
from elit_serve.server.watching import arrival_log
from elit_serve.server.watching.arrival_log import ArrivalLog

COST = CostTable(
    steps_ms={(StepKind("32x32", level, weak), 1): 1.0 for level in (1, 2, 3, 4) for weak in (None, 1)}, overhead_ms=1.0
)
NOT_SAID = {
    "latency_ms": None,
    "budget": None,
    "min_budget": None,
    "max_budget": None,
    "min_quality": None,
    "steps": None,
    "size": None,
}
DEFAULTS = {"n": 1, "best_effort": False, "priority": "interactive"}

Record = Callable[..., None]  # of a log, when in the clock's seconds, and the fields of a request


@pytest.fixture
def record(tiny_pipeline: Pipeline) -> Record:
    budgets = tiny_pipeline.budgets

    def record(log: ArrivalLog, arrived_s: float, **fields: object) -> None:
        request = GenerateRequest.model_validate({"label": "tulip", **fields})
        order = order_of(request, tiny_pipeline, COST, Settings(), arrived_s=arrived_s, open_plans={})
        log.record(request, order, budgets)

    return record


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_line_says_what_was_asked_and_when_but_no_text(record: Record, tmp_path: Path) -> None:
    log = ArrivalLog(tmp_path / "log", max_bytes=10_000, clock=VirtualClock(100.0))
    log.start()
    record(log, 101.5, latency_ms=300, min_budget=0.5, n=2)
    record(log, 103.0, label="daisy", budget=0.5, steps=8, priority="batch", seed=7)
    record(log, 103.0, levels=[1, 2, 3, 4])
    log.stop()
    lines = entries(tmp_path / "log")
    times = [line.pop("arrived_s") for line in lines]
    assert [seconds - times[0] for seconds in times] == pytest.approx([0, 1.5, 1.5])
    assert abs(times[0] - 1.5 - time.time()) < 60
    assert lines == [
        {**NOT_SAID, **DEFAULTS, "class_id": 2, "latency_ms": 300.0, "min_budget": 0.5, "n": 2},
        {**NOT_SAID, **DEFAULTS, "class_id": 0, "budget": 0.5, "steps": 8, "priority": "batch"},
        {**NOT_SAID, **DEFAULTS, "class_id": 2, "budget": 0.625},
    ]


def test_a_request_for_n_pictures_is_replayed_as_n_arrivals(record: Record, tmp_path: Path) -> None:
    log = ArrivalLog(tmp_path / "log", max_bytes=10_000, clock=VirtualClock())
    log.start()
    record(log, 1.0)
    record(log, 3.0, n=2)
    log.stop()
    times = open_arrivals(str(tmp_path / "log")).draw(3, Random(0))
    assert [seconds - times[0] for seconds in times] == pytest.approx([0, 2, 2])


def test_a_restarted_server_goes_on_in_the_same_file(record: Record, tmp_path: Path) -> None:
    for _ in range(2):
        log = ArrivalLog(tmp_path / "log", max_bytes=10_000, clock=VirtualClock())
        log.start()
        record(log, 1.0)
        log.stop()
    assert len(entries(tmp_path / "log")) == 2


def test_the_log_and_its_predecessor_stay_within_their_size_and_hold_the_latest(record: Record, tmp_path: Path) -> None:
    log = ArrivalLog(tmp_path / "log", max_bytes=8192, clock=VirtualClock())
    log.start()
    for second in range(200):
        record(log, float(second))
    log.stop()
    old, new = tmp_path / "log.1", tmp_path / "log"
    assert sorted(tmp_path.iterdir()) == [new, old]
    assert 4096 < old.stat().st_size + new.stat().st_size <= 8192
    times = [line["arrived_s"] for line in entries(old) + entries(new)]
    assert [later - times[-1] for later in times[-20:]] == pytest.approx(range(-19, 1))


def test_a_full_disk_is_told_once(record: Record, caplog: pytest.LogCaptureFixture) -> None:
    log = ArrivalLog(Path("/dev/full"), max_bytes=10_000, clock=VirtualClock())
    log.start()
    for second in range(100):
        record(log, float(second))
    log.stop()
    (warning,) = caplog.messages
    assert "No space left on device" in warning


def test_a_full_disk_stops_nobody(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, arrival_log="/dev/full"))
    for _ in range(3):
        assert server.generate({"label": "tulip", "budget": 0.25}).status_code == 200


def test_lines_that_a_slow_disk_has_no_room_for_are_lost_and_this_is_told_once(
    record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(arrival_log, "MAX_UNWRITTEN", 3)
    log = ArrivalLog(tmp_path / "log", max_bytes=10_000, clock=VirtualClock())
    for second in range(5):  # nothing is written before the start
        record(log, float(second))
    log.start()
    log.stop()
    assert len(entries(tmp_path / "log")) == 3
    assert caplog.messages == ["the arrival log lacks requests, because its disk is too slow"]


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"^arrival_log: .*a file that can be written \(Is a directory\)"):
        ArrivalLog(tmp_path, max_bytes=10_000, clock=VirtualClock())


def run(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "elit_serve.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_a_server_logs_is_replayed_by_simulate_and_bench(
    shared_tiny_model_dir: Path, tiny_server_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "arrivals.jsonl"
    serve = [sys.executable, "-m", "elit_serve.cli", "serve", str(shared_tiny_model_dir), "--arrival-log", str(log)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    with subprocess.Popen(
        [*serve, "--host", "127.0.0.1", "--port", "0", "--threads", "1"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        url = re.findall(r"http://[\d.]+:\d+", process.stdout.readline())[0]
        for latency_ms, status in ((60_000, 200), (0.01, 422), (None, 200)):  # what is refused has arrived as well
            body = {"label": "tulip", "latency_ms": latency_ms}
            assert httpx.post(f"{url}/v1/generate", json=body, timeout=60).status_code == status
        assert httpx.post(f"{url}/v1/generate", json={"label": "unknown"}).status_code == 422
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert [line["latency_ms"] for line in entries(log)] == [60_000, 0.01, None]

    (cost,) = tmp_path.rglob("*.json")  # what the server has measured
    simulated = run(
        *("simulate", "--trace", log, "--recorded-targets", "--cost", cost, "--requests", 3, "--seeds", 1),
        *("--steps", 4, "--load", 0.1, "--policy", "elastic", "--curve", "gentle", "--json"),
    )
    (row,) = simulated["rows"]
    assert row["attainment"] == pytest.approx(2 / 3)  # one of the targets is infeasible
    measured = run("bench", tiny_server_url, "--trace", log, "--rate", 20, "--no-target", "--requests", 3, "--json")
    assert measured["completed"] == 3
