"""Plans by which it is judged whether a newcomer is worth what it takes."""

from __future__ import annotations

import pytest

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, QualityTable
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.policy.admission import Slowest, abreast, admissible, rooms
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.price import Rates
from elit_serve.scheduler.policy.view import View
from elit_serve.scheduler.requests import Demand

STEPS_MS = {(4, 1): 10.0, (4, 8): 12.0, (16, 1): 10.5, (16, 8): 24.0}  # by level and batch
KINDS_MS = {(StepKind("32x32", level), batch): step_ms for (level, batch), step_ms in STEPS_MS.items()}
TABLE = CostTable(steps_ms=KINDS_MS, overhead_ms=0.0)


def work(request_id: int, costs: CorrectedCosts, within_s: float, *, min_level: int = 4, max_level: int = 16) -> Work:
    """Ten steps: 105 ms alone at level 16."""
    demand = Demand(
        request_id=request_id,
        shape="32x32",
        arrived_s=0.0,
        deadline_s=within_s,
        weak_caps=(None,) * 10,
        min_level=min_level,
        max_level=max_level,
    )
    return Work(demand, costs, latest_s=within_s, margin_s=0.0, order=within_s)


def is_taken(newcomer: Work, promised: list[Work], rates: Rates, view: View, images_per_s: float = 0.0) -> bool:
    together = sorted([*promised, newcomer], key=lambda work: work.order)
    flow = {"slowdown": 1.0, "urgent_rate": 0.0, "images_per_s": images_per_s}
    return admissible([newcomer], promised, together, view, rates, **flow) is not None


def test_a_level_costs_what_it_does_in_the_batches_of_the_plan() -> None:
    """Twice as much together, hardly more alone: one who has no time to share runs alone, at the highest level."""
    costs = CorrectedCosts(TABLE)
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    rates = Rates(QualityTable(levels={4: 0.5, 16: 1.0}), costs, 8, work(0, costs, 1.0).ladder)
    assert rates.longest == 2.0
    works = [work(0, costs, 0.106), *(work(request_id, costs, 10.0) for request_id in range(1, 8))]
    found = Slowest(works, view, rates).find(rates.longest)
    assert found is not None
    assert found.times == rates.longest
    assert [room.times for room in rooms(found, view, rates.longest)] == [rates.longest]
    assert [work.kind.level for work in found.plan.next_members()] == [4], (
        "what is promised is planned as low as it may"
    )


def test_nobody_is_taken_by_a_plan_that_holds_at_a_higher_level_only() -> None:
    """At level 16 both share a launch of 12.4 ms; at their lowest levels they need two, of 20.5 ms together."""
    costs = CorrectedCosts(TABLE)
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    rates = Rates(QualityTable(levels={4: 0.5, 16: 1.0}), costs, 2, work(0, costs, 1.0).ladder)
    works = [work(0, costs, 0.15), work(1, costs, 0.16, min_level=16)]
    assert Slowest(works, view, rates).find(rates.longest) is not None
    assert not is_taken(works[1], works[:1], rates, view)


def test_time_that_those_who_come_will_take_is_no_reason_to_refuse_anybody() -> None:
    """Seven have time for the highest level, and all of it would be gone with an eighth who is in a hurry. If as many
    come as fill the device at the lowest level, that time is gone without the eighth, too."""
    costs = CorrectedCosts(TABLE)
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    newcomer, promised = work(7, costs, 0.121), [work(request_id, costs, 0.25) for request_id in range(7)]
    gentle, steep = (
        Rates(QualityTable(levels={4: lowest, 16: 1.0}), costs, 8, newcomer.ladder) for lowest in (0.7, 0.2)
    )
    assert not is_taken(newcomer, promised, gentle, view)
    assert not is_taken(newcomer, promised, gentle, view, images_per_s=10.0)
    assert is_taken(newcomer, promised, gentle, view, images_per_s=65.0)
    assert not is_taken(newcomer, promised, steep, view, images_per_s=65.0), (
        "the highest level has most quality per second: those who come are refused instead"
    )


def test_who_may_not_run_so_high_is_planned_as_high_as_it_may() -> None:
    costs = CorrectedCosts(TABLE)
    raised = work(0, costs, 1.0, max_level=4).raised(16, costs)
    assert (raised.kind.level, raised.solo_s) == (4, work(0, costs, 1.0).solo_s)
    halfway = work(0, costs, 1.0).moved_to(5).raised(16, costs)
    assert (halfway.kind.level, halfway.left, round(halfway.solo_s, 9)) == (16, 5, 0.0525)


@pytest.mark.parametrize(
    ("places", "share"),
    [([0] * 8, 1.0), ([3] * 8, 1.0), (list(range(10)), 0.01), ([0] * 5 + [9] * 5, 0.0)],
    ids=["all begin", "all go on", "at all places", "at both ends"],
)
def test_pictures_of_a_burst_are_abreast_and_those_of_a_stream_are_not(places: list[int], share: float) -> None:
    costs = CorrectedCosts(TABLE)
    works = [work(number, costs, 1.0).moved_to(at) for number, at in enumerate(places)]
    assert abreast(works) == pytest.approx(share)


def test_pictures_abreast_are_worth_more_in_the_same_time_where_late_steps_weigh_more() -> None:
    """Half the time beyond the least, spent on the second half of the steps: with squares they weigh three quarters."""
    costs = CorrectedCosts(TABLE)
    even, late = (
        Rates(QualityTable(levels={4: 0.5, 16: 1.0}, late=weight), costs, 8, work(0, costs, 1.0).ladder)
        for weight in (1.0, 2.0)
    )
    assert [late.worth_within(times, abreast=0.0) for times in (1.0, 1.5, 2.0)] == pytest.approx([0.5, 0.75, 1.0])
    assert [late.worth_within(times, abreast=1.0) for times in (1.0, 1.5, 2.0)] == pytest.approx([0.5, 0.875, 1.0])
    assert late.worth_within(1.5, abreast=0.5) == pytest.approx(0.8125)
    assert even.worth_within(1.5, abreast=1.0) == pytest.approx(0.75)
    half_done = work(0, costs, 1.0).moved_to(5)
    assert (even.worth_left(half_done), late.worth_left(half_done)) == (0.5, 0.75)
