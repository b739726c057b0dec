"""Callers of every kind at once, against a real server: all are told, and it counts what they were told."""

from __future__ import annotations

from collections import Counter

import pytest

from elit_serve.bench.soak.callers import LEFT, Tally
from elit_serve.bench.soak.ledger import quantile, unaccounted
from elit_serve.bench.soak.report import soak_tables
from elit_serve.bench.soak.soak import MIX, SoakOptions, SoakReport, run_soak
from elit_serve.clock import MonotonicClock
from elit_serve.files.records import RequestEnding


@pytest.fixture(scope="module")
def report(tiny_server_url: str) -> SoakReport:
    return run_soak(SoakOptions(url=tiny_server_url, callers=100, seconds=2.5), clock=MonotonicClock())


def test_everybody_is_answered_refused_or_gone(report: SoakReport) -> None:
    assert report.mix.of(RequestEnding.FAILED) == 0, report.mix.reasons
    assert {kind for kind, _ in report.mix.endings} == set(MIX)
    for ending in (RequestEnding.DONE, RequestEnding.REFUSED, LEFT):
        assert report.mix.of(ending) > 0


def test_the_server_accounts_for_all_of_them(report: SoakReport) -> None:
    assert report.discrepancies == ()


def test_the_figures_are_there(report: SoakReport) -> None:
    checks = {check.name: check for check in report.checks}
    assert len(checks) == 6
    assert all(check.value >= 0 for check in checks.values()), "none of them is NaN"
    assert len(list(soak_tables(report))) == 3


def counted(**outcomes: int) -> dict[str, float]:
    endings = {"done": 0, "refused": 0, "expired": 0, "failed": 0, "cancelled": 0, **outcomes}
    samples = {f'elit_generations_total{{outcome="{name}"}}': float(n) for name, n in endings.items()}
    samples |= {
        f'elit_jobs_ended_total{{state="{state}"}}': 0.0 for state in ("done", "failed", "expired", "cancelled")
    }
    return samples | {'elit_requests_total{outcome="ok",route="/v1/generate"}': float(sum(endings.values()))}


TALLY = Tally(seconds=1, endings=Counter({("pinned", RequestEnding.DONE): 5, ("leaving", LEFT): 2}))


@pytest.mark.parametrize("outcomes", [{"done": 5}, {"done": 6, "cancelled": 1}, {"done": 5, "refused": 2}])
def test_who_left_may_have_been_counted_in_any_way(outcomes: dict[str, int]) -> None:
    assert unaccounted(TALLY, counted(**outcomes)) == []


@pytest.mark.parametrize("outcomes", [{"done": 4, "cancelled": 2}, {"done": 8}, {"done": 5, "refused": 2, "failed": 1}])
def test_who_was_told_something_else_is_found(outcomes: dict[str, int]) -> None:
    assert unaccounted(TALLY, counted(**outcomes))


def test_a_quantile_is_the_edge_of_its_bucket() -> None:
    samples = {f'lag_bucket{{le="{edge}"}}': n for edge, n in (("0.01", 90.0), ("0.05", 99.0), ("+Inf", 100.0))}
    assert quantile(samples, "lag", 0.5) == 0.01
    assert quantile(samples, "lag", 0.99) == 0.05
    assert quantile(samples, "lag", 0.995) == float("inf")
