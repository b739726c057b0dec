"""Closed forms of every figure, on records written by hand."""

from __future__ import annotations

import pytest

from elit_serve.bench.load.report import Spread, closed_summary, open_summary, summary_table
from elit_serve.files.records import RequestEnding, RequestRecord


def changed(record: RequestRecord, **fields: object) -> RequestRecord:
    return record.model_copy(update=fields)


DONE = RequestRecord(
    planned_s=10.0,
    sent_s=10.01,
    ended_s=10.2,
    latency_ms=300.0,
    ending=RequestEnding.DONE,
    budget=0.5,
    queue_ms=20.0,
    compute_ms=100.0,
    encode_ms=25.0,
    total_ms=150.0,
)
UNTOLD = changed(DONE, budget=None, queue_ms=None, compute_ms=None, encode_ms=None, total_ms=None)
LATE = changed(DONE, planned_s=11.0, sent_s=11.0, ended_s=11.4, budget=1.0, compute_ms=200.0, total_ms=370.0)
REFUSED = changed(UNTOLD, planned_s=12.0, sent_s=12.0, ended_s=12.1, ending=RequestEnding.REFUSED, reason="overloaded")
EXPIRED = changed(UNTOLD, planned_s=13.0, sent_s=13.0, ended_s=14.0, ending=RequestEnding.EXPIRED, reason="expired")
FAILED = changed(UNTOLD, planned_s=13.5, sent_s=13.5, ended_s=13.6, ending=RequestEnding.FAILED, reason="unreachable")


def test_latency_runs_from_the_planned_arrival() -> None:
    assert DONE.e2el_ms == pytest.approx(200)
    assert DONE.overhead_ms == pytest.approx(50)
    assert DONE.added_ms == pytest.approx(200 - 20 - 100 - 25)
    assert UNTOLD.overhead_ms is None
    assert UNTOLD.added_ms is None


@pytest.mark.parametrize(
    ("record", "is_on_time"),
    [
        (DONE, True),
        (LATE, False),
        (changed(LATE, latency_ms=None), True),  # without a target nothing is late
        (changed(DONE, planned_s=9.8), False),  # sent too late by this client, which counts
        (REFUSED, False),
        (FAILED, False),
    ],
)
def test_on_time_is_done_within_the_target(record: RequestRecord, is_on_time: bool) -> None:
    assert record.is_on_time is is_on_time


def test_figures_of_an_open_loop() -> None:
    summary = open_summary([DONE, LATE, REFUSED, REFUSED, EXPIRED, FAILED])
    assert summary.duration_s == pytest.approx(4.0)  # 10 to 14
    assert (summary.offered, summary.completed, summary.expired) == (6, 2, 1)
    assert summary.refused == {"overloaded": 2}
    assert summary.failed == {"unreachable": 1}
    assert summary.request_throughput == pytest.approx(2 / 4)
    assert summary.request_goodput == pytest.approx(1 / 4)
    assert summary.slo_attainment_rate == pytest.approx(1 / 6)
    assert summary.accepted_attainment == pytest.approx(1 / 4)
    assert summary.e2el_ms.mean == pytest.approx(300)
    assert summary.e2el_ms.median == pytest.approx(300)
    assert summary.e2el_ms.p99 == pytest.approx(200 + 0.99 * 200)
    assert summary.overhead_ms.mean == pytest.approx((50 + 30) / 2)
    assert summary.added_ms.median == pytest.approx((55 + 155) / 2)
    assert summary.send_delay_ms.mean == pytest.approx(10 / 6)
    assert (summary.budget, summary.queue_ms, summary.compute_ms, summary.encode_ms) == (0.75, 20, 150, 25)


def test_a_closed_loop_is_measured_from_the_last_end_of_its_warm_up() -> None:
    ends_s = [0.5, 1.0, 2.0, 2.0, 3.0, 3.0]
    records = [changed(UNTOLD, planned_s=0.0, ended_s=end_s, latency_ms=None) for end_s in ends_s]
    summary = closed_summary(records, warm_up=2)
    assert summary.duration_s == pytest.approx(2.0)
    assert summary.offered == 4
    assert summary.request_throughput == pytest.approx(4 / 2)
    assert summary.slo_attainment_rate is None


def test_refusals_do_not_count_as_throughput() -> None:
    records = [changed(UNTOLD, ended_s=10.0), *(changed(REFUSED, ended_s=11.0 + index) for index in range(4))]
    assert closed_summary(records, warm_up=1).request_throughput == 0


def test_nothing_answered_leaves_its_figures_open() -> None:
    summary = open_summary([REFUSED, REFUSED])
    assert summary.e2el_ms == Spread(mean=None, median=None, p99=None)
    assert (summary.slo_attainment_rate, summary.accepted_attainment, summary.budget) == (0, None, None)


def test_names_are_those_of_other_benchmarks() -> None:
    figures = open_summary([DONE, LATE]).as_dict()
    usual = {"request_throughput", "request_goodput", "slo_attainment_rate"}
    usual |= {"mean_e2el_ms", "median_e2el_ms", "p99_e2el_ms"}
    assert usual <= set(figures)
    assert figures["mean_budget"] == 0.75
    table = summary_table("title", open_summary([DONE, REFUSED]))
    assert table.row_count == len(figures)
