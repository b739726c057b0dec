"""Steps in flight: pictures that are finished in fewer, longer steps where others need the time."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.grid import time_grid
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.policy.pace import Ladder
from elit_serve.scheduler.policy.price import Rates
from elit_serve.scheduler.policy.strides import Strides
from elit_serve.scheduler.replay import as_text, from_text
from elit_serve.scheduler.requests import Demand, Refusal
from elit_serve.scheduler.state import State

STEPS = 20
NO_MARGIN = ElasticSettings(margin=0.0)
LATE_IS_CHEAP = Coarsening.of(time_grid(STEPS), {4: (0.0, 0.0, 0.05)})


def image(request_id: int, *, within_s: float, arrived_s: float = 0.0, **fields: Any) -> Demand:
    """Twenty unguided steps, hard: 60 ms alone at the lowest level in all steps, 30 in half of them."""
    fields = {"weak_caps": (None,) * STEPS, "min_level": 4, "max_level": 16, "coarsening": LATE_IS_CHEAP, **fields}
    return Demand(shape="32x32", request_id=request_id, arrived_s=arrived_s, deadline_s=arrived_s + within_s, **fields)


def scheduler_of(table: CostTable, quality: QualityTable, *demands: Demand) -> RequestScheduler:
    scheduler = RequestScheduler(table, ElasticPolicy(quality, NO_MARGIN))
    for demand in demands:
        assert scheduler.submit([demand], 0.0) is None
    return scheduler


def played(scheduler: RequestScheduler) -> Driver:
    driver = Driver(scheduler, AsPredicted())
    driver.advance_to(float("inf"))
    assert scheduler.counters.decision_errors == 0
    return driver


def test_with_time_enough_every_step_is_the_plan_s(table: CostTable, quality: QualityTable) -> None:
    ended = played(scheduler_of(table, quality, image(1, within_s=10.0))).endings[1]
    assert (ended.levels, ended.strides) == ((16,) * STEPS, (1,) * STEPS)


def test_what_is_possible_in_fewer_steps_alone_is_promised_and_kept(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality)
    refusal = scheduler.submit([image(1, within_s=0.05, coarsening=None)], 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.min_latency_ms) == ("infeasible", 70)
    refusal = scheduler.submit([image(2, within_s=0.03)], 0.0)
    assert isinstance(refusal, Refusal)
    assert refusal.min_latency_ms == 40
    assert scheduler.submit([image(3, within_s=0.05)], 0.0) is None
    ended = played(scheduler).endings[3]
    assert ended.state is State.DONE
    assert sum(ended.strides) == STEPS
    assert len(ended.strides) < STEPS


def test_steps_are_given_up_late_rather_than_early(table: CostTable, quality: QualityTable) -> None:
    """A crowd leaves no time for all steps, and early ones are worth more than the levels that they cost."""
    costly = Coarsening.of(time_grid(STEPS), {4: (0.0, 0.0, 0.3)}, {4: 0.4})
    demands = [image(i, within_s=0.5, coarsening=costly) for i in range(8)]
    endings = played(scheduler_of(table, quality, *demands)).endings
    assert all(ending.at_s <= 0.5 for ending in endings.values())
    for ended in endings.values():
        assert set(ended.strides[:3]) == {1}
        assert set(ended.strides[5:]) == {1, 2}


def test_a_hurried_picture_takes_the_longest_steps(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality, image(1, within_s=10.0))
    driver = Driver(scheduler, AsPredicted())
    for _ in range(4):
        driver.next_launch()
        driver.finish()
    scheduler.hurry(1, driver.now_s)
    driver.advance_to(float("inf"))
    assert driver.endings[1].strides == (1,) * 4 + (2,) * 8


def test_a_written_state_goes_on_in_the_same_strides(table: CostTable, quality: QualityTable) -> None:
    scheduler = scheduler_of(table, quality, *(image(i, within_s=0.3) for i in range(6)))
    again = from_text(as_text(scheduler))
    assert [launched.launch for launched in played(again).launches] == [
        launched.launch for launched in played(scheduler).launches
    ]


@pytest.mark.parametrize("seed", range(10))
def test_in_fewer_steps_more_is_taken_and_worth_more(table: CostTable, quality: QualityTable, seed: int) -> None:
    """A burst of requests, of which not all find room in all steps; every promise is kept."""

    def total(coarsening: Coarsening | None) -> float:
        random, worth = Random(seed), 0.0
        scheduler = scheduler_of(table, quality)
        driver = Driver(scheduler, SimulatedDevice(table))
        for request_id in range(40):
            driver.advance_to(driver.now_s + random.expovariate(40))
            driver.submit([image(request_id, within_s=0.3, arrived_s=driver.now_s, coarsening=coarsening)])
        driver.advance_to(float("inf"))
        for ended in driver.endings.values():
            assert ended.state is State.DONE
            worth += quality.of_steps(ended.levels, ended.strides, coarsening)
        assert scheduler.counters.missed == 0
        return worth

    assert total(LATE_IS_CHEAP) > 1.1 * total(None)


def drawn(random: Random) -> Coarsening:
    losses = {}
    longest = random.randint(2, 6)
    for level in (4, 16):
        rises = [random.choice([0.0, random.random() / longest]) for _ in range(longest - 1)]
        losses[level] = (0.0, 0.0, *(sum(rises[: index + 1]) for index in range(longest - 1)))
    return Coarsening.of(time_grid(12, random.choice([1.0, 3.0])), losses, {4: random.choice([0.0, 0.5])})


@pytest.mark.parametrize("seed", range(100))
def test_the_best_stride_is_the_best_of_all(seed: int) -> None:
    random = Random(seed)
    strides = Strides(drawn(random))
    level, saving = random.choice([4, 8, 16]), random.choice([0.0, 10 ** random.uniform(-4, 1)])
    everywhere = strides.everywhere(level, saving)[: -strides.longest]
    assert everywhere == sorted(everywhere), "they grow along the way"
    for density, stride in zip(strides.density, everywhere, strict=False):
        costs = [strides.losses(level)[s] * density + saving / s for s in range(1, strides.longest + 1)]
        assert costs[stride - 1] == pytest.approx(min(costs))
        assert strides.best(level, saving, density) == stride
    assert strides.density == sorted(strides.density, reverse=True)


@pytest.mark.parametrize("seed", range(20))
def test_the_more_can_be_afforded_the_less_is_a_second_worth(table: CostTable, seed: int) -> None:
    quality = QualityTable(levels={4: 0.5, 8: 0.75, 16: 1.0})
    rates = Rates(quality, CorrectedCosts(table), 4, Ladder("32x32", None), drawn(Random(seed)))
    prices = [rates.price(0.0005 * 1.1**power) for power in range(60)]
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > 100 * prices[-1] > 0
    lengths = [rates.mean_stride(price) for price in prices]
    assert lengths[0] >= lengths[-1] >= 1
