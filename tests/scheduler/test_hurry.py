"""A request that is to end early, "stop now, keep what there is": what it gets then, and what others get beside it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.replay import as_text, from_text
from elit_serve.scheduler.requests import Demand, Launch
from elit_serve.scheduler.state import State


def image(request_id: int, *, within_s: float = 10.0, steps: int = 10, **fields: Any) -> Demand:
    """Ten unguided steps with time for the highest level."""
    fields = {"weak_caps": (None,) * steps, "min_level": 4, "max_level": 16, **fields}
    return Demand(shape="32x32", request_id=request_id, arrived_s=0.0, deadline_s=within_s, **fields)


def elastic(table: CostTable, quality: QualityTable, *demands: Demand) -> RequestScheduler:
    scheduler = RequestScheduler(table, ElasticPolicy(quality))
    for demand in demands:
        assert scheduler.submit([demand], 0.0) is None
    return scheduler


def run_steps(scheduler: RequestScheduler, number: int, now_s: float = 0.0) -> list[Launch]:
    launches = []
    for _ in range(number):
        launch = scheduler.decide(now_s)
        assert launch is not None
        now_s += launch.predicted_ms / 1000
        scheduler.finished(launch.launch_id, now_s)
        launches.append(launch)
    return launches


def levels(launches: list[Launch]) -> list[int]:
    return [launch.kind.level for launch in launches]


def test_alone_it_asks_for_no_compute_any_more(table: CostTable, quality: QualityTable) -> None:
    scheduler = elastic(table, quality, image(1))
    assert levels(run_steps(scheduler, 3)) == [16, 16, 16]
    assert scheduler.hurry(1, 0.018)
    assert set(levels(run_steps(scheduler, 7, 0.018))) == {4}
    assert scheduler.state(1) is State.FINISHING


def test_its_bounds_hold(table: CostTable, quality: QualityTable) -> None:
    scheduler = elastic(table, quality, image(1, min_level=8))
    run_steps(scheduler, 1)
    scheduler.hurry(1, 0.006)
    assert set(levels(run_steps(scheduler, 9, 0.006))) == {8}


def test_those_who_share_its_launches_lose_nothing(table: CostTable, quality: QualityTable) -> None:
    launches = []
    for hurries in (False, True):
        scheduler = elastic(table, quality, image(1), image(2))
        begun = run_steps(scheduler, 1)
        if hurries:
            assert scheduler.hurry(1, 0.01)
        launches.append(begun + run_steps(scheduler, 9, 0.01))
    assert levels(launches[0]) == levels(launches[1])


def test_what_is_pinned_keeps_its_levels(table: CostTable, quality: QualityTable) -> None:
    scheduler = elastic(table, quality, image(1, pinned=(16,) * 10))
    run_steps(scheduler, 1)
    assert scheduler.hurry(1, 0.006)
    assert set(levels(run_steps(scheduler, 9, 0.006))) == {16}


def test_there_is_nothing_to_hurry_where_nothing_is_left(table: CostTable, quality: QualityTable) -> None:
    scheduler = elastic(table, quality, image(1, steps=1))
    run_steps(scheduler, 1)
    assert scheduler.hurry(1, 0.006), "it is decoded now, which is soon enough"
    scheduler.delivered(1, 0.01)
    assert not scheduler.hurry(1, 0.02)
    assert not scheduler.hurry(99, 0.02)


@pytest.mark.parametrize("copied", [RequestScheduler.copy, lambda scheduler: from_text(as_text(scheduler))])
def test_a_copy_knows_it(table: CostTable, quality: QualityTable, copied: Any) -> None:
    scheduler = elastic(table, quality, image(1))
    run_steps(scheduler, 1)
    scheduler.hurry(1, 0.006)
    assert levels(run_steps(copied(scheduler), 2, 0.006)) == [4, 4]


def test_a_policy_that_begins_afresh_knows_it(table: CostTable, quality: QualityTable) -> None:
    class Defective(ElasticPolicy):
        def hurry(self, request_id: int) -> None:
            raise KeyError(request_id)

    scheduler = RequestScheduler(table, Defective(quality))
    assert scheduler.submit([image(1)], 0.0) is None
    run_steps(scheduler, 1)
    assert scheduler.hurry(1, 0.006)
    assert scheduler.counters.decision_errors == 1
    assert levels(run_steps(scheduler, 2, 0.006)) == [4, 4]


def test_the_fixed_policy_goes_on_at_the_lowest_level(table: CostTable) -> None:
    scheduler = RequestScheduler(table, FixedPolicy())
    assert scheduler.submit([image(1)], 0.0) is None
    assert levels(run_steps(scheduler, 2)) == [16, 16]
    scheduler.hurry(1, 0.012)
    assert set(levels(run_steps(scheduler, 8, 0.012))) == {4}


@settings(max_examples=60, deadline=None)
@given(
    targets_ms=st.lists(st.floats(50, 400), min_size=1, max_size=12),
    hurried=st.dictionaries(st.integers(0, 11), st.floats(0, 400), max_size=6),
)
def test_promises_are_kept_whoever_hurries(targets_ms: list[float], hurried: dict[int, float]) -> None:
    steps_ms = {(StepKind("32x32", level), batch): 2 + batch * level / 4 for level in (4, 8, 16) for batch in (1, 8)}
    table = CostTable(steps_ms=steps_ms, overhead_ms=0.0)
    scheduler = RequestScheduler(table, ElasticPolicy(QualityTable(levels={4: 0.5, 16: 1.0})))
    driver = Driver(scheduler, AsPredicted())
    taken = [i for i, ms in enumerate(targets_ms) if driver.submit([image(i, within_s=ms / 1000)]) is None]
    for request_id, at_ms in sorted(hurried.items(), key=lambda pair: pair[1]):
        driver.advance_to(at_ms / 1000)
        scheduler.hurry(request_id, driver.now_s)
    driver.advance_to(float("inf"))
    assert all(driver.endings[i].state is State.DONE for i in taken)
    assert all(driver.endings[i].at_s <= targets_ms[i] / 1000 for i in taken)
