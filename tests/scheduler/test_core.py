"""The state of requests and launches, whatever the policy."""

from __future__ import annotations

from random import Random

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.requests import Demand, Launch
from elit_serve.scheduler.state import State


def image(
    request_id: int, *, within_s: float = 1.0, arrived_s: float = 0.0, steps: int = 2, hard: bool = True
) -> Demand:
    return Demand(
        shape="32x32",
        request_id=request_id,
        arrived_s=arrived_s,
        deadline_s=arrived_s + within_s,
        weak_caps=(None,) * steps,
        min_level=4,
        max_level=16,
        is_hard=hard,
    )


@pytest.fixture
def scheduler(table: CostTable, quality: QualityTable) -> RequestScheduler:
    return RequestScheduler(table, ElasticPolicy(quality))


def decided(scheduler: RequestScheduler, start_s: float) -> Launch:
    launch = scheduler.decide(start_s)
    assert isinstance(launch, Launch)
    return launch


def test_a_request_goes_from_waiting_over_running_and_finishing_to_done(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1)], 0.0)
    assert (scheduler.state(1), scheduler.num_waiting) == (State.WAITING, 1)
    first = decided(scheduler, 0.0)
    assert (scheduler.state(1), scheduler.num_waiting, scheduler.num_running) == (State.RUNNING, 0, 1)
    assert scheduler.finished(first.launch_id, 0.006) == ()
    second = decided(scheduler, 0.006)
    assert scheduler.finished(second.launch_id, 0.012) == (1,)
    assert (scheduler.state(1), scheduler.num_running) == (State.FINISHING, 0)
    scheduler.delivered(1, 0.02)
    assert scheduler.state(1) is State.DONE
    assert scheduler.progress_of(1).levels == [16, 16]
    assert (scheduler.counters.promised, scheduler.counters.kept, scheduler.counters.missed) == (1, 1, 0)
    scheduler.forget(1)
    assert scheduler.state(1) is None


def test_decided_launches_count_as_run_before_they_are_reported(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1)], 0.0)
    first = decided(scheduler, 0.0)
    second = decided(scheduler, scheduler.busy_until_s)
    assert scheduler.busy_until_s == pytest.approx((first.predicted_ms + second.predicted_ms) / 1000)
    assert scheduler.decide(scheduler.busy_until_s) is None
    assert scheduler.finished(first.launch_id, 0.006) == (), "its last step is still on the device"
    assert scheduler.finished(second.launch_id, 0.012) == (1,)


def test_launches_must_be_reported_in_the_order_in_which_they_were_decided(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1)], 0.0)
    decided(scheduler, 0.0)
    second = decided(scheduler, 0.006)
    with pytest.raises(AssertionError, match="order"):
        scheduler.finished(second.launch_id, 0.012)


def test_a_newcomer_is_judged_against_the_time_at_which_the_device_is_free(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1, steps=1, hard=False)], 0.0)
    decided(scheduler, 1.0)
    assert scheduler.busy_until_s > 1.0
    refusal = scheduler.submit([image(2, within_s=0.1, arrived_s=0.9)], 0.9)
    assert refusal is not None
    assert refusal.reason == "overloaded"
    assert not scheduler.would_take([image(2, within_s=0.1, arrived_s=0.91)], 0.91)
    free_s = scheduler.busy_until_s
    assert scheduler.would_take([image(2, within_s=0.1, arrived_s=free_s)], free_s)


def test_a_cancelled_request_is_not_among_those_its_launch_finishes(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1, steps=1), image(2, steps=1)], 0.0)
    launch = decided(scheduler, 0.0)
    assert launch.request_ids == (1, 2)
    assert scheduler.cancel(1, 0.001)
    assert not scheduler.cancel(1, 0.002), "it has ended"
    assert not scheduler.cancel(7, 0.002), "nobody knows it"
    assert scheduler.finished(launch.launch_id, 0.01) == (2,)
    assert scheduler.state(1) is State.CANCELLED


def test_a_failed_request_frees_its_place_and_the_others_go_on(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1), image(2)], 0.0)
    launch = decided(scheduler, 0.0)
    scheduler.failed([1], 0.005)
    scheduler.finished(launch.launch_id, 0.01)
    assert scheduler.state(1) is State.FAILED
    assert decided(scheduler, 0.01).request_ids == (2,)


def test_a_hard_deadline_that_passes_ends_the_request_and_a_soft_one_does_not(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1, within_s=0.5), image(2, within_s=0.5, hard=False)], 0.0)
    assert scheduler.expire(0.5) == ()
    assert scheduler.expire(0.6) == (1,)
    assert scheduler.expire(0.7) == ()
    assert (scheduler.state(1), scheduler.state(2)) == (State.EXPIRED, State.WAITING)
    assert scheduler.counters.missed == 1
    scheduler.delivered(1, 0.8)
    assert scheduler.state(1) is State.EXPIRED, "a picture that comes out afterwards changes nothing"


def test_only_ended_requests_may_be_forgotten(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1)], 0.0)
    with pytest.raises(AssertionError):
        scheduler.forget(1)


def test_a_lower_batch_limit_holds_from_the_next_launch_on(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(i, within_s=5.0) for i in range(8)], 0.0)
    assert len(decided(scheduler, 0.0).request_ids) == 8
    scheduler.limit_batch(3)
    assert [len(decided(scheduler, scheduler.busy_until_s).request_ids) for _ in range(3)] == [3, 3, 2]


@pytest.mark.parametrize(("bias", "noise"), [(1.1, 0.0), (1.1, 0.1), (0.9, 0.1)])
def test_a_constant_error_is_corrected_within_seconds_and_noise_is_not_chased(
    table: CostTable, quality: QualityTable, bias: float, noise: float
) -> None:
    rng = Random(1)
    scheduler = RequestScheduler(table, ElasticPolicy(quality))
    now_s, corrections = 0.0, []
    for request_id in range(120):
        assert scheduler.submit([image(request_id, within_s=100.0, arrived_s=now_s, steps=20)], now_s) is None
        for _ in range(20):
            launch = decided(scheduler, now_s)
            observed_ms = table.step_ms(launch.kind, 1) * bias * rng.gauss(1.0, noise)
            now_s += observed_ms / 1000
            scheduler.finished(launch.launch_id, now_s, observed_ms)
        if now_s > 7:
            corrections.append(scheduler.correction(now_s))
    assert len(corrections) > 50
    assert all(correction == pytest.approx(bias, abs=0.02) for correction in corrections)


def test_one_stall_is_not_taken_for_a_slower_device(scheduler: RequestScheduler) -> None:
    scheduler.submit([image(1)], 0.0)
    scheduler.finished(decided(scheduler, 0.0).launch_id, 10.0, observed_ms=10_000.0)
    assert scheduler.correction(10.0) == pytest.approx(1.0, abs=0.01)


def slowed_down(scheduler: RequestScheduler, table: CostTable, now_s: float, *, factor: float) -> float:
    """Something keeps the device busy beside us for some seconds; nothing is left to run when it returns the time."""
    for request_id in range(1000, 1020):
        scheduler.submit([image(request_id, within_s=1e6, arrived_s=now_s, steps=20)], now_s)
        for _ in range(20):
            launch = decided(scheduler, now_s)
            observed_ms = factor * table.step_ms(launch.kind, len(launch.request_ids))
            now_s += observed_ms / 1000
            scheduler.finished(launch.launch_id, now_s, observed_ms)
    return now_s


def test_an_idle_device_is_trusted_again_though_everybody_is_refused_meanwhile(
    scheduler: RequestScheduler, table: CostTable
) -> None:
    now_s = slowed_down(scheduler, table, 0.0, factor=3.0)
    assert scheduler.correction(now_s) > 2
    for asked in range(60):
        demand = image(asked, within_s=0.001, arrived_s=now_s + asked)
        assert scheduler.submit([demand], now_s + asked) is not None, "no device could do that"
    assert scheduler.correction(now_s + 60) < 1.15
    assert scheduler.submit([image(99, within_s=0.04, arrived_s=now_s + 60)], now_s + 60) is None


def test_a_device_that_has_work_is_not_idle(scheduler: RequestScheduler, table: CostTable) -> None:
    now_s = slowed_down(scheduler, table, 0.0, factor=3.0)
    scheduler.submit([image(1, within_s=1e6, arrived_s=now_s)], now_s)
    before = scheduler.correction(now_s)
    assert scheduler.correction(now_s + 60) == before, "it waits for its first step"


def test_now_and_then_a_request_that_only_the_correction_refuses_is_taken(
    scheduler: RequestScheduler, table: CostTable
) -> None:
    """By the table two steps take 6 ms at the lowest level, and the overhead 10. The margin has come to 24, as steps
    took longer than expected all the time. With steps that are twice as long that is over 43 ms."""
    now_s = slowed_down(scheduler, table, 0.0, factor=3.0)

    def asked(request_id: int, at_s: float, within_s: float = 0.043) -> str:
        refusal = scheduler.submit([image(request_id, within_s=within_s, arrived_s=at_s)], at_s)
        return "taken" if refusal is None else refusal.reason

    assert asked(1, now_s, within_s=0.018) == "infeasible", "no pace would do for that"
    assert asked(2, now_s) == "taken", "this one tells whether the device is still so slow"
    assert asked(3, now_s + 0.001) == "infeasible", "one at a time, and it is at risk alone"
    for _ in range(2):
        launch = decided(scheduler, now_s)
        now_s += 3 * launch.predicted_ms / 1000
        scheduler.finished(launch.launch_id, now_s, 3 * launch.predicted_ms)
    assert asked(4, now_s + 1) == "infeasible", "and not all the time"
    assert asked(5, now_s + 11) == "taken"


def test_promises_made_after_the_correction_hold_on_the_slower_device(table: CostTable, quality: QualityTable) -> None:
    scheduler, slow = RequestScheduler(table, ElasticPolicy(quality)), table.scaled(1.1)
    rng, now_s, next_id, promised_late = Random(2), 0.0, 0, []
    while now_s < 15:
        if rng.random() < 0.15:
            scheduler.submit([image(next_id, within_s=rng.choice([0.1, 0.3]), arrived_s=now_s, steps=10)], now_s)
            next_id += 1
        launch = scheduler.decide(now_s)
        if launch is None:
            now_s += 0.01
            continue
        observed_ms = slow.step_ms(launch.kind, len(launch.request_ids))
        now_s += observed_ms / 1000
        for request_id in scheduler.finished(launch.launch_id, now_s, observed_ms):
            scheduler.delivered(request_id, now_s + 0.01)
        promised_late += [(now_s, request_id) for request_id in scheduler.expire(now_s)]
    assert scheduler.counters.kept > 100
    assert [late for late in promised_late if late[0] > 6] == []


def test_fixed_runs_everybody_at_the_highest_level_in_order_of_deadlines(table: CostTable) -> None:
    scheduler = RequestScheduler(table, FixedPolicy())
    scheduler.limit_batch(2)
    for request_id, within_s in ((1, 0.5), (2, 0.3), (3, 0.4)):
        assert scheduler.submit([image(request_id, within_s=within_s)], 0.0) is None
    launch = decided(scheduler, 0.0)
    assert (launch.kind.level, launch.request_ids) == (16, (2, 3))


def test_fixed_refuses_only_what_is_impossible_alone_and_what_finds_no_room(table: CostTable) -> None:
    """Two steps of 6 ms at the highest level and 10 ms of overhead."""
    scheduler = RequestScheduler(table, FixedPolicy(max_waiting=2))
    refusal = scheduler.submit([image(1, within_s=0.02)], 0.0)
    assert refusal is not None
    assert (refusal.reason, refusal.min_latency_ms) == ("infeasible", 23)
    assert scheduler.submit([image(1, within_s=0.023), image(2, within_s=0.023)], 0.0) is None
    refusal = scheduler.submit([image(3)], 0.0)
    assert refusal is not None
    assert refusal.reason == "queue_full"
