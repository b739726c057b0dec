"""The device stands still between launches, because the host is not ready: plans count that with each step."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.state import State


class Waiting(AsPredicted):
    """A device that waits 4 ms for its host before each launch; steps take 3 to 12 ms."""

    def gap_s(self, *, has_rested: bool) -> float:  # noqa: ARG002
        return 0.004


class Untold:
    """A scheduler that nobody tells of gaps; all else is its own."""

    def __init__(self, scheduler: RequestScheduler) -> None:
        self._scheduler = scheduler

    def finished(
        self, launch_id: int, now_s: float, observed_ms: float | None = None, *, gap_ms: float | None = None
    ) -> tuple[int, ...]:
        del gap_ms
        return self._scheduler.finished(launch_id, now_s, observed_ms)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


def broken(scheduler: Any, *, after_s: float) -> tuple[int, int]:
    """Promises of an overloaded minute that were given after this time, and how many of them were broken."""
    rng, driver, given = Random(3), Driver(scheduler, Waiting()), []
    for request_id in range(2400):
        driver.advance_to(driver.now_s + rng.expovariate(120.0))
        within_s = rng.choice([0.1, 0.2])
        demand = Demand(
            shape="32x32",
            request_id=request_id,
            arrived_s=driver.now_s,
            deadline_s=driver.now_s + within_s,
            weak_caps=(None,) * 10,
            min_level=1,
            max_level=16,
            is_hard=True,
        )
        if driver.submit([demand]) is None and driver.now_s > after_s:
            given.append(request_id)
    driver.advance_to(float("inf"))
    return len(given), sum(driver.endings[request_id].state is State.EXPIRED for request_id in given)


def test_promises_given_once_the_gap_is_known_are_kept(table: CostTable, quality: QualityTable) -> None:
    num_given, num_broken = broken(RequestScheduler(table, ElasticPolicy(quality)), after_s=3.0)
    assert num_given > 200
    assert num_broken == 0
    num_given, num_broken = broken(Untold(RequestScheduler(table, ElasticPolicy(quality))), after_s=3.0)
    assert num_broken > 0.05 * num_given, "nobody knows of it, and correcting step times does not help"


@pytest.fixture
def costs(table: CostTable) -> CorrectedCosts:
    return CorrectedCosts(table)


def after(costs: CorrectedCosts, *gaps_ms: float) -> CorrectedCosts:
    for gap_ms in gaps_ms:
        if costs.observe_gap(gap_ms, table_ms=6.0):
            costs = costs.with_gap()
    return costs


def test_a_lasting_gap_is_counted_with_every_step_and_forgotten_while_nothing_runs(costs: CorrectedCosts) -> None:
    kind = next(iter(costs.table.steps_ms))[0]
    found = after(costs, *[2.0] * 200)
    assert found.gap_ms == pytest.approx(2.0, rel=0.25)
    assert found.row_s(kind)[1] == pytest.approx(costs.row_s(kind)[1] + found.gap_ms / 1000)
    assert found.row_s(kind)[0] == 0.0
    found.rest(60.0)
    assert after(found, 0.0).gap_ms < 0.2


def test_one_pause_of_the_host_is_not_taken_for_a_gap_of_all_launches(costs: CorrectedCosts) -> None:
    assert after(costs, 500.0).gap_ms < 0.5


def test_launches_that_were_seen_to_end_too_late_and_the_next_too_early_have_no_gap(costs: CorrectedCosts) -> None:
    assert after(costs, *[0.1, -0.1] * 50).gap_ms == 0.0
