"""Arrival specs: what is read, what is drawn, and what is refused."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

import pytest

from elit_serve.bench.load.plan import open_calls
from elit_serve.bench.simulate.arrivals import (
    Gamma,
    OnOff,
    Ramp,
    Recorded,
    arrival_times,
    open_arrivals,
    recorded_targets_ms,
)
from elit_serve.bench.simulate.workload import Setting, draw_workload, scales_of
from elit_serve.errors import InvalidInput
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CostTable
from tests.bench.conftest import THREE


def test_an_azure_trace_is_read_by_its_timestamps(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:47.6805900,1,1\n"
        "2023-11-16 18:15:50.1805900,396,109\n"
    )
    times = open_arrivals(str(trace)).draw(3, Random(0))
    assert [time - times[0] for time in times] == pytest.approx([0, 1, 3.5])


def test_a_plain_list_of_seconds_is_sorted(tmp_path: Path) -> None:
    trace = tmp_path / "seconds.txt"
    trace.write_text("0.5\n0.25\n\n2\n")
    assert open_arrivals(str(trace)).draw(3, Random(0)) == (0.25, 0.5, 2.0)


def test_an_arrival_log_is_read_whatever_else_stands_in_its_lines(tmp_path: Path) -> None:
    trace = tmp_path / "arrivals.jsonl"
    trace.write_text('{"arrived_s": 12.5, "n": 2, "class_id": 3}\n{"latency_ms": null, "arrived_s": 11}\n')
    assert open_arrivals(str(trace)).draw(3, Random(0)) == (11.0, 12.5, 12.5)


def test_the_targets_of_a_log_stay_with_their_arrivals_at_every_load(tmp_path: Path) -> None:
    trace = tmp_path / "arrivals.jsonl"
    lines = [{"arrived_s": second, "latency_ms": 100.0 + second if second % 2 else None} for second in range(100)]
    trace.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = open_arrivals(str(trace))
    first = source.draw(10, Random("arrivals 3"))[0]
    recorded = [lines[int(first) + index]["latency_ms"] for index in range(10)]
    assert list(recorded_targets_ms(source, count=10, seed=3)) == recorded

    table = CostTable(
        steps_ms={(StepKind("32x32", 4, 1), 1): 10.0, (StepKind("32x32", 1, 1), 1): 5.0}, overhead_ms=20.0
    )
    setting = Setting(table=table, num_steps=10, weak_cap=1)
    demands = draw_workload(setting, source, load=2, slo_scales=(), count=10, seed=3, recorded_targets=True)
    wished_s = 3 * setting.solo_s
    for demand, target_ms in zip(demands, recorded, strict=True):
        assert demand.is_hard == (target_ms is not None)
        target_s = wished_s if target_ms is None else target_ms / 1000
        assert demand.deadline_s - demand.arrived_s == pytest.approx(target_s)
    calls = open_calls(source, count=10, rate_per_s=1, targets_ms=(), subjects=THREE, seed=3, recorded_targets=True)
    assert [call.latency_ms for call in calls] == recorded


@pytest.mark.parametrize("content", ["1\n2\n3\n", "TIMESTAMP\n2023-11-16\n2023-11-17\n2023-11-18\n"])
def test_targets_that_were_not_recorded_cannot_be_had(tmp_path: Path, content: str) -> None:
    trace = tmp_path / "trace"
    trace.write_text(content)
    with pytest.raises(InvalidInput, match=r"^recorded-targets: .*arrival log"):
        recorded_targets_ms(open_arrivals(str(trace)), count=2, seed=0)


@pytest.mark.parametrize(
    "content",
    [
        *("", "1.0\n", "1\nsoon\n", "1\nnan\n", "TIMESTAMP\nyesterday\ntoday\n", '{"arrived_s": 1}\n2\n'),
        *('{"arrived_s": 1}\n{"arrived_s', '{"at": 1}\n{"at": 2}\n', '{"arrived_s": 1, "n": 0}\n' * 2),
    ],
)
def test_a_file_that_is_no_trace_is_refused(tmp_path: Path, content: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(content)
    with pytest.raises(InvalidInput, match=r"^trace: "):
        open_arrivals(str(trace))


@pytest.mark.parametrize(
    "spec",
    [
        *("missing.csv", "gamma", "gamma:cv=0", "gamma:cv=x", "gamma:cv=1,cv=2", "poisson:cv=1", "ramp:from=1,to=-1"),
        *("step:to=0,share=0.5", "step:to=10,share=1", "step:to=10", "on-off:burst=0.5,share=0.5", "on-off:burst=9"),
    ],
)
def test_a_bad_spec_is_refused(spec: str) -> None:
    with pytest.raises(InvalidInput, match=r"^trace: "):
        open_arrivals(spec)


def test_a_window_is_stretched_to_the_wanted_rate_and_keeps_its_pattern() -> None:
    source = Recorded(name="three", times_s=(10.0, 11.0, 14.0))
    assert arrival_times(source, count=3, rate_per_s=0.25, seed=1) == pytest.approx([0, 2, 8])


def test_a_seed_draws_the_same_window_at_every_rate_and_another_seed_another() -> None:
    slow = arrival_times(Gamma(cv=2), count=50, rate_per_s=1.0, seed=3)
    fast = arrival_times(Gamma(cv=2), count=50, rate_per_s=2.0, seed=3)
    assert [time / 2 for time in slow] == pytest.approx(fast)
    assert slow != arrival_times(Gamma(cv=2), count=50, rate_per_s=1.0, seed=4)


@pytest.mark.parametrize(("spec", "cv"), [("poisson", 1.0), ("gamma:cv=0.2", 0.2), ("gamma:cv=3", 3.0)])
def test_gaps_vary_as_much_as_asked(spec: str, cv: float) -> None:
    times = arrival_times(open_arrivals(spec), count=20_000, rate_per_s=5.0, seed=0)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert fmean(gaps) == pytest.approx(0.2)
    assert pstdev(gaps) / fmean(gaps) == pytest.approx(cv, rel=0.1)


def test_a_ramp_ends_faster_than_it_began() -> None:
    times = arrival_times(Ramp(start=0.5, end=1.5), count=20_000, rate_per_s=20_000.0, seed=0)
    early = sum(time < 0.25 * times[-1] for time in times) / len(times)
    late = sum(time >= 0.75 * times[-1] for time in times) / len(times)
    assert early == pytest.approx(0.25 * (0.5 + 0.75) / 2, rel=0.05)
    assert late == pytest.approx(0.25 * (1.25 + 1.5) / 2, rel=0.05)


def test_a_step_multiplies_the_rate_in_the_middle() -> None:
    times = arrival_times(open_arrivals("step:to=10,share=0.1"), count=20_000, rate_per_s=20_000.0, seed=0)
    shares = [sum(low <= time / times[-1] < low + 0.1 for time in times) / len(times) for low in (0.2, 0.45, 0.7)]
    assert shares == pytest.approx([0.1 / 1.9, 1 / 1.9, 0.1 / 1.9], rel=0.05)


def test_a_train_of_bursts_is_silent_in_between_and_its_bursts_have_the_wanted_size() -> None:
    times = OnOff(burst=20, share=0.25).draw(40_000, Random(0))
    gaps = [later - earlier for earlier, later in pairwise(times)]
    pauses = sum(gap > 3 for gap in gaps)  # within bursts the mean gap is 0.25; pauses last 15 on average
    assert times[-1] / len(times) == pytest.approx(1, rel=0.1)
    assert len(times) / (pauses / 0.82) == pytest.approx(20, rel=0.15)  # exp(-3/15): a fifth of pauses are shorter


def test_named_targets_and_numbers_are_read_alike() -> None:
    assert scales_of("bimodal") == scales_of("1.5,20") == (1.5, 20.0)
    with pytest.raises(InvalidInput, match="tight"):
        scales_of("whenever")


def test_more_arrivals_than_were_recorded_or_a_window_without_length_are_refused() -> None:
    with pytest.raises(InvalidInput, match="holds 2 arrivals"):
        arrival_times(Recorded(name="two", times_s=(0.0, 1.0)), count=3, rate_per_s=1, seed=0)
    with pytest.raises(InvalidInput, match="one moment"):
        arrival_times(Recorded(name="burst", times_s=(1.0, 1.0)), count=2, rate_per_s=1, seed=0)


def test_a_table_with_a_field_without_end_is_no_trace(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(f"TIMESTAMP,Tokens\n2026-11-29,{'9' * 200_000}\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="no CSV"):
        open_arrivals(str(file))


def test_load_1_is_the_saturated_throughput_and_targets_are_multiples_of_the_solo_latency() -> None:
    table = CostTable(
        steps_ms={
            (StepKind("32x32", 4, 1), 1): 10.0,
            (StepKind("32x32", 4, 1), 8): 40.0,
            (StepKind("32x32", 1, 1), 1): 5.0,
            (StepKind("32x32", 1, 1), 8): 20.0,
        },
        overhead_ms=20.0,
    )
    setting = Setting(table=table, num_steps=10, weak_cap=1)
    demands = draw_workload(setting, Gamma(cv=1), load=0.5, slo_scales=(2.0, 5.0), count=101, seed=0)
    assert demands[-1].arrived_s == pytest.approx(100 / (0.5 * 8 / 0.4))
    targets = {round(demand.deadline_s - demand.arrived_s, 9) for demand in demands}
    assert targets == {0.24, 0.6}
    assert demands[0].weak_caps == (1,) * 10
