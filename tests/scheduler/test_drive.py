"""The loop around a scheduler: what happens when, and what is known of it afterwards."""

from __future__ import annotations

from math import inf

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.requests import Demand, Launch
from elit_serve.scheduler.state import State


def image(request_id: int, *, within_s: float = 1.0, arrived_s: float = 0.0, steps: int = 2) -> Demand:
    """At the highest level two steps take 12 ms alone."""
    return Demand(
        shape="32x32",
        request_id=request_id,
        arrived_s=arrived_s,
        deadline_s=arrived_s + within_s,
        weak_caps=(None,) * steps,
        min_level=16,
        max_level=16,
    )


@pytest.fixture
def scheduler(table: CostTable, quality: QualityTable) -> RequestScheduler:
    return RequestScheduler(table, ElasticPolicy(quality, ElasticSettings(margin=0.0)))


class Slow(AsPredicted):
    """Takes a hundred times what is predicted, and 5 ms for an answer."""

    overhead_s = 0.005

    def run_ms(self, launch: Launch) -> float:
        return 100 * launch.predicted_ms


def test_who_is_submitted_at_the_same_moment_shares_the_first_launch(scheduler: RequestScheduler) -> None:
    driver = Driver(scheduler, AsPredicted())
    for request_id in range(3):
        driver.advance_to(0.5)
        assert driver.submit([image(request_id, arrived_s=0.5)]) is None
    driver.advance_to(inf)
    assert [launch.request_ids for launch, *_ in driver.launches] == [(0, 1, 2), (0, 1, 2)]
    assert driver.launches[0].start_s == 0.5
    assert {ending.state for ending in driver.endings.values()} == {State.DONE}


def test_a_newcomer_joins_at_the_next_step_and_time_stops_where_it_is_asked_to(scheduler: RequestScheduler) -> None:
    driver = Driver(scheduler, AsPredicted())
    driver.submit([image(0)])
    driver.advance_to(0.003)
    assert (driver.now_s, len(driver.running)) == (0.003, 1)
    driver.submit([image(1, arrived_s=0.003)])
    driver.advance_to(inf)
    assert [launch.request_ids for launch, *_ in driver.launches] == [(0,), (0, 1), (1,)]
    assert driver.endings[0].levels == driver.endings[1].levels == (16, 16)


def test_who_is_late_expires_before_the_next_decision_and_is_not_answered(scheduler: RequestScheduler) -> None:
    driver = Driver(scheduler, Slow())
    driver.submit([image(0, within_s=0.1)])
    driver.submit([image(1, within_s=30.0)])
    driver.advance_to(inf)
    assert driver.endings[0].state is State.EXPIRED
    assert driver.endings[0].levels == (16,)
    assert driver.endings[1].state is State.DONE
    assert driver.endings[1].at_s == pytest.approx(driver.launches[-1].end_s + 0.005)


def test_what_is_foretold_teaches_nothing_and_nobody_expires(scheduler: RequestScheduler) -> None:
    driver = Driver(scheduler, Slow(), foretells=True)
    driver.submit([image(0, within_s=0.1)])
    driver.advance_to(inf)
    assert driver.endings[0].state is State.DONE
    assert scheduler.correction(driver.now_s) == 1.0


def test_two_launches_may_be_on_the_device_and_the_second_starts_when_the_first_ends(
    scheduler: RequestScheduler,
) -> None:
    driver = Driver(scheduler, AsPredicted(), depth=2)
    driver.submit([image(0)])
    first, second = driver.start(), driver.start()
    assert first is not None
    assert second is not None
    assert second.start_s == first.end_s
    assert driver.start() is None, "the device takes no more"
    driver.finish()
    assert [launch.launch_id for launch, *_ in driver.running] == [1]
    driver.cancel(0)
    driver.advance_to(inf)
    assert driver.endings[0].state is State.CANCELLED


def test_what_is_over_may_be_forgotten_and_all_goes_on(scheduler: RequestScheduler) -> None:
    driver = Driver(scheduler, Slow())  # whose answers take a while
    driver.submit([image(0, within_s=9.0)])
    while scheduler.progress_of(0).at < 2:
        driver.next_launch()
    driver.finish()
    driver.cancel(0)  # between its last step and its answer
    driver.submit([image(1, within_s=9.0, arrived_s=driver.now_s)])
    driver.forget()
    assert driver.launches == []
    assert list(driver.endings) == [0], "its answer is still on the way, and is not to be counted"
    driver.advance_to(inf)
    driver.forget()
    assert driver.endings == {}
    assert (scheduler.counters.delivered, scheduler.num_waiting, scheduler.num_running) == (1, 0, 0)
