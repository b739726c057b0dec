"""Small scenes with the elastic policy: this queue at this time, expect this decision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.arrivals import Urgent
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.forecast import retry_after_s
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.view import View
from elit_serve.scheduler.policy.wishes import Wishes
from elit_serve.scheduler.quality import logarithmic
from elit_serve.scheduler.requests import Demand, Launch, Priority, Refusal
from elit_serve.scheduler.state import State

NO_MARGIN = ElasticSettings(margin=0.0)
ALL_ALIKE = QualityTable(levels={4: 1.0})  # no level is better than another, so whoever finds room is worth it
UNGUIDED_10 = (None,) * 10


def image(request_id: int, *, within_s: float, arrived_s: float = 0.0, **fields: Any) -> Demand:
    """Ten unguided steps, hard, unless said otherwise: 30 ms alone at the lowest level, 60 at the highest."""
    fields = {"weak_caps": UNGUIDED_10, "min_level": 4, "max_level": 16, **fields}
    return Demand(shape="32x32", request_id=request_id, arrived_s=arrived_s, deadline_s=arrived_s + within_s, **fields)


def scheduler_of(table: CostTable, quality: QualityTable, settings: ElasticSettings = NO_MARGIN) -> RequestScheduler:
    return RequestScheduler(table, ElasticPolicy(quality, settings))


def run_next(scheduler: RequestScheduler, now_s: float) -> tuple[Launch, float]:
    """Decides and runs a launch exactly as predicted."""
    launch = scheduler.decide(now_s)
    assert isinstance(launch, Launch)
    end_s = now_s + launch.predicted_ms / 1000
    scheduler.finished(launch.launch_id, end_s, launch.predicted_ms)
    return launch, end_s


def test_a_request_alone_with_time_runs_at_the_highest_level(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    assert scheduler.submit([image(1, within_s=10.0)], 0.0) is None
    launch = scheduler.decide(0.0)
    assert isinstance(launch, Launch)
    assert launch == Launch(
        launch_id=0, request_ids=(1,), kind=StepKind("32x32", 16), predicted_ms=6.0, levels=(16,), strides=(1,)
    )


def test_a_request_in_flight_gives_compute_back_when_others_arrive(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    scheduler.submit([image(1, within_s=0.2)], 0.0)
    first, now_s = run_next(scheduler, 0.0)
    assert scheduler.submit([image(i, within_s=0.2, arrived_s=now_s) for i in range(2, 9)], now_s) is None
    second, _ = run_next(scheduler, now_s)
    assert 1 in second.request_ids
    assert second.kind.level < first.kind.level
    assert scheduler.counters.replans == 1


def test_nothing_to_run_is_a_wait_for_the_next_arrival(table: CostTable, quality: QualityTable) -> None:
    assert scheduler_of(table, quality).decide(0.0) is None


def test_what_is_impossible_alone_is_refused_with_a_target_that_is_then_accepted(
    table: CostTable, quality: QualityTable
) -> None:
    scheduler = scheduler_of(table, quality, ElasticSettings())
    refusal = scheduler.submit([image(1, within_s=0.02)], 0.0)
    assert refusal is not None
    assert refusal.reason == "infeasible"
    assert refusal.min_latency_ms == pytest.approx(10 + 30 + 0.3 * 10**0.5 * 6, abs=1)
    target_s = refusal.min_latency_ms / 1000
    assert scheduler.submit([image(2, within_s=target_s - 0.001)], 0.0) is not None
    assert scheduler.submit([image(3, within_s=target_s)], 0.0) is None


def test_several_images_are_taken_together_or_not_at_all(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    refusal = scheduler.submit([image(i, within_s=0.05) for i in range(8)], 0.0)
    assert refusal is not None
    assert refusal.min_latency_ms == pytest.approx(10 + 10 * (2 + 8), abs=1)
    assert scheduler.decide(0.0) is None
    assert scheduler.submit([image(i, within_s=0.111) for i in range(8)], 0.0) is None


def test_what_others_make_impossible_is_refused_until_the_told_time(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    assert scheduler.submit([image(i, within_s=0.111) for i in range(8)], 0.0) is None
    refusal = scheduler.submit([image(9, within_s=0.05)], 0.0)
    assert refusal == Refusal(reason="overloaded")
    told_s = retry_after_s(
        scheduler.copy(), lambda copy, at_s: copy.would_take([image(9, within_s=0.05, arrived_s=at_s)], at_s), 0.0
    )
    assert 0 < told_s <= 0.111
    now_s = 0.0
    while now_s < told_s and scheduler.num_running + scheduler.num_waiting:
        _, now_s = run_next(scheduler, now_s)
    now_s = max(now_s, told_s)
    assert scheduler.submit([image(9, within_s=0.05, arrived_s=now_s)], now_s) is None


def test_a_pinned_request_shares_its_launch_with_free_ones_that_may_run_there(
    table: CostTable, quality: QualityTable
) -> None:
    scheduler = scheduler_of(table, quality)
    scheduler.submit([image(1, within_s=1.0, pinned=(8,) * 10)], 0.0)
    scheduler.submit([image(2, within_s=1.1)], 0.0)
    scheduler.submit([image(3, within_s=1.2, min_level=16)], 0.0)
    launch = scheduler.decide(0.0)
    assert isinstance(launch, Launch)
    assert (launch.kind.level, launch.request_ids) == (8, (1, 2))


def test_a_launch_mixes_only_steps_of_the_same_kind(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    scheduler.submit([image(1, within_s=1.0, weak_caps=(4,) * 10)], 0.0)
    scheduler.submit([image(2, within_s=1.1)], 0.0)
    scheduler.submit([image(3, within_s=1.2, weak_caps=(4,) * 5 + (None,) * 5)], 0.0)
    launch = scheduler.decide(0.0)
    assert isinstance(launch, Launch)
    assert (launch.kind.weak_level, launch.request_ids) == (4, (1, 3))


def test_the_cost_of_guided_steps_to_come_is_planned(table: CostTable, quality: QualityTable) -> None:
    """Nine unguided steps of 3 ms and one guided one of 4 fit into 41 ms with the overhead; ten guided ones do not."""
    scheduler = scheduler_of(table, quality)
    mixed, guided = (None,) * 9 + (4,), (4,) * 10
    assert scheduler.submit([image(1, within_s=0.0415, weak_caps=guided)], 0.0) is not None
    assert scheduler.submit([image(2, within_s=0.0415, weak_caps=mixed)], 0.0) is None


def test_soft_requests_are_never_refused_for_their_deadline_and_never_break_a_promise(
    table: CostTable, quality: QualityTable
) -> None:
    scheduler = scheduler_of(table, quality)
    assert scheduler.submit([image(i, within_s=0.001, is_hard=False) for i in range(20)], 0.0) is None
    assert scheduler.submit([image(20, within_s=0.0401)], 0.0) is None
    now_s, finished_s = 0.0, 0.0
    for _ in range(10):
        launch, now_s = run_next(scheduler, now_s)
        finished_s = now_s if 20 in launch.request_ids else finished_s
    assert scheduler.progress_of(20).at == 10
    assert finished_s <= 0.0301


def test_soft_work_of_the_batch_class_goes_later_but_ages(table: CostTable, quality: QualityTable) -> None:
    one_at_a_time = replace(NO_MARGIN, ageing_s=30.0)
    scheduler = scheduler_of(table, quality, one_at_a_time)
    scheduler.limit_batch(1)
    scheduler.submit([image(1, within_s=1.0, is_hard=False, priority=Priority.BATCH)], 0.0)
    scheduler.submit([image(2, within_s=1.0, is_hard=False, arrived_s=29.0)], 29.0)
    scheduler.submit([image(3, within_s=1.0, is_hard=False, arrived_s=31.0)], 31.0)
    order, now_s = [], 31.0
    for _ in range(30):
        launch, now_s = run_next(scheduler, now_s)
        order += [i for i in launch.request_ids if i not in order]
    assert order == [2, 1, 3]


def test_hard_work_of_the_batch_class_leaves_a_reserve(table: CostTable, quality: QualityTable) -> None:
    """Alone it takes 30 ms and 10 of overhead: with a fifth kept free, it needs 30 / 0.8 and 10."""
    scheduler = scheduler_of(table, quality)
    refusal = scheduler.submit([image(1, within_s=0.042, priority=Priority.BATCH)], 0.0)
    assert refusal is not None
    assert refusal.min_latency_ms == pytest.approx(47.5, abs=1)
    assert scheduler.submit([image(2, within_s=0.042)], 0.0) is None


def test_a_full_queue_refuses_until_one_of_it_runs(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality, replace(NO_MARGIN, max_waiting=2))
    assert scheduler.submit([image(i, within_s=5.0, is_hard=False) for i in (1, 2)], 0.0) is None
    refusal = scheduler.submit([image(3, within_s=5.0, is_hard=False)], 0.0)
    assert refusal == Refusal(reason="queue_full")
    run_next(scheduler, 0.0)
    assert scheduler.submit([image(3, within_s=5.0, is_hard=False)], 0.01) is None


def taken_at_once(table: CostTable, quality: QualityTable) -> int:
    scheduler = scheduler_of(table, quality)
    return sum(scheduler.submit([image(i, within_s=0.15)], 0.0) is None for i in range(30))


def test_where_low_levels_are_worth_little_fewer_are_taken_who_are_made_better(table: CostTable) -> None:
    """In 14 ms a step, 12 fit by the plan at the lowest level, 8 in a launch; level 16 takes 4 at a time."""
    steep, gentle = QualityTable(levels={4: 0.1, 8: 0.5, 16: 0.9}), QualityTable(levels={4: 0.9, 16: 1.0})
    assert taken_at_once(table, steep) < taken_at_once(table, gentle) == taken_at_once(table, ALL_ALIKE)


def test_a_newcomer_is_worth_less_where_others_are_expected_who_would_lose_by_it(table: CostTable) -> None:
    """The same request beside the same promises, with and without some who have just asked for the impossible. Where so
    many come that all is at the lowest level in any case, they lose nothing by it."""

    def is_taken(*, others: int) -> bool:
        scheduler = scheduler_of(table, QualityTable(levels={4: 0.5, 8: 0.8, 16: 1.0}))
        for i in range(100, 100 + others):
            assert scheduler.submit([image(i, within_s=0.02)], 0.0) is not None
        assert scheduler.submit([image(i, within_s=0.09) for i in range(3)], 0.0) is None
        return scheduler.submit([image(3, within_s=0.09)], 0.0) is None

    assert is_taken(others=0)
    assert not is_taken(others=2)
    assert is_taken(others=40)


@pytest.mark.parametrize(("within_s", "level"), [(0.041, 8), (10.0, 16)])
def test_only_arrivals_that_cannot_wait_lower_levels(
    table: CostTable, quality: QualityTable, within_s: float, level: int
) -> None:
    """One with time, after eight who were refused or have left again: they asked for little more than what they take
    alone, or could have waited."""
    scheduler = scheduler_of(table, quality)
    assert scheduler.submit([image(0, within_s=0.2)], 0.0) is None
    for i in range(1, 9):
        if scheduler.submit([image(i, within_s=within_s)], 0.0) is None:
            scheduler.cancel(i, 0.0)
    launch = scheduler.decide(0.0)
    assert isinstance(launch, Launch)
    assert launch.kind.level == level


@pytest.mark.parametrize(("target_s", "level"), [(0.01, 8), (0.07, 8), (0.7, 16)])
def test_of_urgent_work_to_come_as_much_counts_as_is_due_before_a_request_ends(
    table: CostTable, quality: QualityTable, target_s: float, level: int
) -> None:
    """Ten steps in 70 ms could all be at the highest level, while 0.3 seconds of such work come each second."""
    costs = CorrectedCosts(table)
    work = Work(image(0, within_s=0.07), costs, latest_s=0.07, margin_s=0.0, order=0.07)
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    cohort, _ = Wishes(quality, parking=2.0).cohort([work], Urgent(0.3, target_s), view)
    assert cohort.level == level


def test_what_promises_have_to_spare_is_no_reason_for_lower_levels(table: CostTable, quality: QualityTable) -> None:
    """Ten steps of 6 ms at the highest level and 10 ms after them, just in time when all goes as predicted."""
    scheduler = scheduler_of(table, quality, ElasticSettings(memory=0.001))
    assert scheduler.submit([image(0, within_s=0.0725)], 0.0) is None
    launch = scheduler.decide(0.001)
    assert isinstance(launch, Launch)
    assert launch.kind.level == 16


@pytest.mark.parametrize(("launch_ms", "level", "members"), [(0.5, 16, 6), (12.0, 8, 8)])
def test_who_can_wait_is_left_out_unless_launches_cost_more_than_their_members(
    launch_ms: float, level: int, members: int
) -> None:
    """One with 0.8 of the time that all take together at the highest level, and seven with 60 times as much."""
    batches = [(level, batch) for level in (4, 8, 16) for batch in (1, 2, 4, 8)]
    steps_ms = {(StepKind("32x32", level), batch): launch_ms + batch * level / 4 for level, batch in batches}
    table = CostTable(steps_ms=steps_ms, overhead_ms=10.0)
    all_s = 10 * table.step_ms(StepKind("32x32", 16), 8) / 1000
    quality = QualityTable(levels=logarithmic(table.levels, lowest=0.5))
    scheduler = scheduler_of(table, quality, ElasticSettings(margin=0.0, memory=0.001))
    assert scheduler.submit([image(0, within_s=0.01 + 0.8 * all_s)], 0.0) is None
    assert scheduler.submit([image(i, within_s=0.01 + 60 * all_s) for i in range(1, 8)], 0.0) is None
    launch = scheduler.decide(0.001)
    assert isinstance(launch, Launch)
    assert (launch.kind.level, len(launch.request_ids)) == (level, members)


def test_of_those_who_can_wait_whoever_has_the_most_steps_to_spare_is_left_out(table: CostTable) -> None:
    """Not who could take longest over each step: that is the one at its last, and it would be there all the longer."""
    costs = CorrectedCosts(table)
    works = [
        Work(image(i, within_s=latest_s), costs, latest_s=latest_s, margin_s=0.0, order=latest_s).moved_to(10 - left)
        for i, (latest_s, left) in enumerate([(0.024, 2), (0.03, 1), (0.2, 10)])
    ]
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    steep = QualityTable(levels={4: 0.1, 8: 0.4, 16: 1.0})
    cohort, _ = Wishes(steep, parking=2.0).cohort(works, Urgent(0.0, 0.1), view)
    assert (cohort.level, [work.request_id for work in cohort.members]) == (16, [0, 1])


def test_hundreds_of_promises_are_planned_and_kept(table: CostTable) -> None:
    """Saturated at the lowest level, 8 images take 100 ms, so 200 take 2.5 s."""
    scheduler = scheduler_of(table, ALL_ALIKE)
    taken = [i for i in range(250) if scheduler.submit([image(i, within_s=2.6)], 0.0) is None]
    assert 195 <= len(taken) < 250
    now_s = 0.0
    while scheduler.num_waiting + scheduler.num_running:
        _, now_s = run_next(scheduler, now_s)
    assert now_s + 0.01 <= 2.6
    assert all(scheduler.progress_of(i).at == 10 for i in taken)


def test_promises_that_are_due_later_run_beside_urgent_ones(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    assert all(scheduler.submit([image(i, within_s=1.0)], 0.0) is None for i in range(6))
    launch, _ = run_next(scheduler, 0.0)
    assert launch.request_ids == (0, 1, 2, 3, 4, 5)


def test_as_many_are_taken_as_fit_side_by_side(table: CostTable) -> None:
    """Eight side by side take 100 ms at the lowest level, and nine would take their turns."""
    scheduler = scheduler_of(table, ALL_ALIKE)
    assert sum(scheduler.submit([image(i, within_s=0.111)], 0.0) is None for i in range(9)) == 8


@pytest.mark.parametrize(("later", "soft"), [(1, 1), (5, 6), (8, 3)])
def test_promises_that_have_all_ended_stand_in_nobodys_way(table: CostTable, later: int, soft: int) -> None:
    """Those that are due later may end before the others; soft work then goes on as if nothing was promised."""
    scheduler = scheduler_of(table, ALL_ALIKE)
    assert scheduler.submit([image(i, within_s=3.0) for i in range(2)], 0.0) is None
    short = {"weak_caps": (None,)}
    assert scheduler.submit([image(i, within_s=3.1, **short) for i in range(10, 10 + later)], 0.0) is None
    for i in range(10, 10 + later):
        scheduler.cancel(i, 0.0)
    now_s = 0.0
    while scheduler.num_waiting + scheduler.num_running:
        _, now_s = run_next(scheduler, now_s)
    assert (
        scheduler.submit([image(i, within_s=0.1, arrived_s=3.2, is_hard=False) for i in range(20, 20 + soft)], 3.2)
        is None
    )
    launch, _ = run_next(scheduler, 3.2)
    assert len(launch.request_ids) == soft
    assert scheduler.counters.decision_errors == 0


def test_soft_work_of_another_guidance_gets_its_turn_beside_promises_that_never_end(table: CostTable) -> None:
    """Before every step as many are asked for with a promise of 0.2 s as find room, all of one guidance; somebody who
    has none, and wants another guidance, hopes for 0.1 s."""
    scheduler, now_s, next_id = scheduler_of(table, ALL_ALIKE), 0.0, 100
    waits = image(1, within_s=0.1, arrived_s=0.5, is_hard=False, weak_caps=(4,) * 10)
    while scheduler.state(1) is not State.DONE and now_s < 20:
        if now_s >= 0.5 and scheduler.state(1) is None:
            assert scheduler.submit([waits], now_s) is None
        while scheduler.submit([image(next_id, within_s=0.2, arrived_s=now_s)], now_s) is None:
            next_id += 1
        launch, now_s = run_next(scheduler, now_s)
        for i in launch.request_ids:
            if scheduler.state(i) is State.FINISHING:
                scheduler.delivered(i, now_s)
    assert now_s < 2.0
    assert scheduler.expire(now_s) == ()
    assert scheduler.counters.missed == 0


def test_nobody_is_taken_by_a_plan_with_steps_shorter_than_they_are(quality: QualityTable) -> None:
    """Where the highest level costs least a picture, its price is below half of the lowest one's."""
    steps_ms = {
        (StepKind("32x32", 4, None), 1): 10.0,
        (StepKind("32x32", 4, None), 8): 80.0,
        (StepKind("32x32", 16, None), 1): 10.0,
        (StepKind("32x32", 16, None), 8): 10.0,
    }
    scheduler = scheduler_of(CostTable(steps_ms=steps_ms, overhead_ms=0.0), quality)
    only_low = {"max_level": 4}
    taken = [i for i in range(8) if scheduler.submit([image(i, within_s=0.45, **only_low)], 0.0) is None]
    now_s = 0.0
    while scheduler.num_waiting + scheduler.num_running:
        _, now_s = run_next(scheduler, now_s)
    assert len(taken) == 4
    assert now_s <= 0.45


def test_where_late_steps_weigh_more_a_burst_runs_lower_early_and_higher_late(table: CostTable) -> None:
    """Eight at once, with time for ten steps of 26 ms: 10 ms at level 4, 18 at 8 and 34 at 16."""

    def levels(late: float) -> list[int]:
        quality = QualityTable(levels=logarithmic(table.levels, lowest=0.5), late=late)
        scheduler, now_s, found = scheduler_of(table, quality), 0.0, []
        scheduler.submit([image(number, within_s=0.26) for number in range(8)], now_s)
        for _ in range(10):
            launch, now_s = run_next(scheduler, now_s)
            found.append(launch.kind.level)
        return found

    assert levels(late=1.0) == [8] * 7 + [16] * 3
    assert levels(late=2.0) == [4] * 2 + [8] * 3 + [16] * 5
