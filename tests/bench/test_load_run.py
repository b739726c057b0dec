"""Whole load runs against a real server around the tiny model, as a caller of Python and as a shell sees them."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from elit_serve.bench.load.run import LoadOptions, LoadReport, run_load
from elit_serve.clock import MonotonicClock
from elit_serve.errors import InvalidInput, ServerUnreachable
from elit_serve.files.latency import Latency, StepCost
from elit_serve.files.records import RequestEnding

PLENTY = 10_000.0  # times the latency alone: met whatever the machine does meanwhile


def run(options: LoadOptions) -> LoadReport:
    return run_load(options, clock=MonotonicClock())


def bench(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "elit_serve.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def cost(tmp_path: Path) -> Path:
    """A full guided step takes 10 ms alone and 20 ms for a batch of 4, so 4 steps and 2 ms of overhead: 42 ms."""
    steps = tuple(
        StepCost(level=level, weak_level=weak, batch=batch, step_ms=2.5 * level * (1 if batch == 1 else 2))
        for level in (1, 2, 3, 4)
        for weak in (None, 1)
        for batch in (1, 4)
    )
    latency = Latency(
        model="tiny",
        backbone_hash="0",
        device="paper",
        dtype="float32",
        torch_version="2",
        elit_serve_version="0",
        date=datetime(2026, 1, 1, tzinfo=UTC),
        repeats=1,
        overhead_ms=2.0,
        steps=steps,
    )
    file = tmp_path / "paper.json"
    file.write_text(latency.model_dump_json())
    return file


def test_targets_that_leave_room_are_all_met(tiny_server_url: str) -> None:
    report = run(LoadOptions(url=tiny_server_url, rate=40.0, requests=12, slo_scales=(PLENTY,)))
    assert [record.ending for record in report.records] == [RequestEnding.DONE] * 12
    assert report.summary.slo_attainment_rate == 1
    assert report.summary.overhead_ms.median is not None
    assert report.summary.overhead_ms.median > 0
    assert report.summary.compute_ms is not None
    assert report.summary.compute_ms > 0


def test_targets_that_nothing_can_meet_are_refusals_and_misses(tiny_server_url: str) -> None:
    report = run(LoadOptions(url=tiny_server_url, rate=100.0, requests=6, slo_scales=(0.001,)))
    assert report.summary.refused == {"infeasible": 6}
    assert (report.summary.slo_attainment_rate, report.summary.request_throughput) == (0, 0)


@pytest.mark.parametrize("accept", [None, "image/png"])
def test_a_closed_loop_pins_its_budget_and_counts_whole_rounds(tiny_server_url: str, accept: str | None) -> None:
    options = LoadOptions(
        url=tiny_server_url, slo_scales=(), closed_loop=3, requests=7, warm_up=2, budget=0.5, steps=2, accept=accept
    )
    report = run(options)
    assert (report.summary.offered, report.summary.completed) == (9, 9)
    assert (report.facts["warm_up"], report.facts["requests"], report.facts["steps"]) == (3, 9, 2)
    assert report.summary.budget == 0.5
    assert report.summary.slo_attainment_rate is None


def test_a_closed_loop_runs_at_full_budget_unless_told_otherwise(tiny_server_url: str) -> None:
    report = run(LoadOptions(url=tiny_server_url, slo_scales=(), closed_loop=1, requests=2, warm_up=1))
    assert report.summary.budget == 1


def test_a_report_is_told_where_its_records_find_no_room(tiny_server_url: str) -> None:
    done = bench(tiny_server_url, "--rate", "40", "--requests", "4", "--no-target", "--records", "/dev/full", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["completed"] == 4
    assert done.stderr == "error: records: '/dev/full' is not allowed; it cannot be written: No space left on device\n"


def test_without_a_cost_file_targets_are_known_for_the_models_own_steps_only(tiny_server_url: str) -> None:
    with pytest.raises(InvalidInput, match="steps"):
        run(LoadOptions(url=tiny_server_url, rate=1.0, steps=2))
    with pytest.raises(InvalidInput, match="cost"):
        run(LoadOptions(url=tiny_server_url, load=1.0))


def test_no_server_is_one_error_before_the_first_request() -> None:
    with pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:1"):
        run(LoadOptions(url="http://127.0.0.1:1", rate=1.0))


def test_the_command_prints_its_figures_and_all_that_they_depend_on(
    tiny_server_url: str, cost: Path, tmp_path: Path
) -> None:
    arguments = [tiny_server_url, "--cost", cost, "--load", 0.25, "--slo-scale", f"{PLENTY},{2 * PLENTY}"]
    lines = tmp_path / "records.jsonl"
    done = bench(*map(str, arguments), "--requests", "8", "--seed", "3", "--records", lines, "--compare", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["completed"], report["slo_attainment_rate"]) == (8, 1)
    assert report["config"]["solo_ms"] == pytest.approx(42)
    assert report["config"]["rate_per_s"] == pytest.approx(0.25 * 4 / 0.080)
    assert report["config"]["load"] == pytest.approx(0.25)
    assert (report["config"]["model"], report["config"]["seed"]) == ("tiny", 3)
    assert "--load 0.25" in report["command"]
    assert (report["simulated"]["policy"], report["simulated"]["slo_attainment_rate"]) == ("elastic", 1)
    assert report["attainment_difference_points"] == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    assert {record["latency_ms"] for record in records} <= {42 * PLENTY, 84 * PLENTY}
    assert [record["ending"] for record in records] == ["done"] * 8
    assert records[0]["planned_s"] == 0


def test_the_command_prints_a_table(tiny_server_url: str) -> None:
    done = bench(tiny_server_url, "--closed-loop", "2", "--requests", "2", "--steps", "1", "--budget", "0.25")
    assert done.returncode == 0, done.stderr
    assert "request_throughput" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["http://127.0.0.1:1", "--trace", "poisson", "--burstiness", "1"], ["burstiness", "--trace"]),
        (["http://127.0.0.1:1", "--recorded-targets", "--no-target"], ["recorded-targets", "--no-target"]),
        (["http://127.0.0.1:1", "--slo-scale", "2,x"], ["slo-scale", "2,x"]),
        (["http://127.0.0.1:1", "--compare"], ["compare", "--cost"]),
        (["http://127.0.0.1:1", "--records", "missing/r.jsonl"], ["records", "missing/r.jsonl"]),
        (["http://127.0.0.1:1", "--records", "/tmp"], ["records", "/tmp"]),
        (["http://127.0.0.1:1", "--cost", "no-such-file.json"], ["cost", "no-such-file.json"]),
    ],
)
def test_an_error_is_one_line_that_names_the_value(arguments: list[str], named: list[str]) -> None:
    done = bench(*arguments)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for part in named:
        assert part in done.stderr
