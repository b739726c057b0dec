"""A refused request that comes back after the told time is taken, if nobody else came meanwhile."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.forecast import retry_after_s
from elit_serve.scheduler.quality import logarithmic
from elit_serve.scheduler.requests import Demand, Refusal

LATE_S = 0.003  # how much later than told a caller is back


def driven(scheduler: RequestScheduler, now_s: float = 0.0) -> Driver:
    """On a device that takes what is predicted for every step; newcomers meet it in the middle of one."""
    return Driver(scheduler, AsPredicted(), now_s=now_s)


def at(demand: Demand, now_s: float) -> Demand:
    """The same request, later."""
    return replace(demand, arrived_s=now_s, deadline_s=now_s + demand.deadline_s - demand.arrived_s)


def asked_again(scheduler: RequestScheduler, driver: Driver, demand: Demand) -> bool:
    """Whether it is taken after the time that it is told."""
    now_s = driver.now_s

    def is_taken(scheduler: RequestScheduler, time_s: float) -> bool:
        return scheduler.would_take([at(demand, time_s)], time_s)

    told_s = retry_after_s(scheduler.copy(), is_taken, now_s)
    later = driven(scheduler.copy(), now_s)
    later.running.extend(driver.running)
    later.advance_to(now_s + told_s + LATE_S)
    return later.submit([at(demand, later.now_s)]) is None


@pytest.mark.parametrize("lowest", [1.0, 0.5])
def test_who_comes_back_when_told_is_taken(table: CostTable, lowest: float) -> None:
    """Over random crowds of promised, soft and pinned work in two kinds of guidance, at about twice what fits."""
    quality = QualityTable(levels=logarithmic(table.levels, lowest=lowest))
    answers: list[bool] = []
    for seed in range(12):
        random, ids = Random(seed), count()
        scheduler = RequestScheduler(table, ElasticPolicy(quality))
        driver = driven(scheduler)
        for _ in range(80):
            driver.advance_to(driver.now_s + random.expovariate(1 / 0.012))
            now_s = driver.now_s
            demand = Demand(
                shape="32x32",
                request_id=next(ids),
                arrived_s=now_s,
                deadline_s=now_s + random.choice([0.12, 0.2, 0.5]),
                weak_caps=(random.choice([4, 4, 16]),) * random.choice([5, 10]),
                min_level=4,
                max_level=16,
                pinned=None,
                is_hard=random.random() < 0.85,
            )
            refusal = driver.submit([demand])
            if isinstance(refusal, Refusal) and refusal.reason == "overloaded":
                answers.append(asked_again(scheduler, driver, demand))
    assert len(answers) >= 100, "the traffic is too light to show anything"
    assert sum(answers) >= 0.97 * len(answers), f"{answers.count(False)} of {len(answers)} were refused again"


def test_who_finds_the_queue_full_is_told_when_there_is_room(table: CostTable, quality: QualityTable) -> None:
    scheduler = RequestScheduler(table, ElasticPolicy(quality, ElasticSettings(max_waiting=8)))
    driver = driven(scheduler)

    def image(request_id: int) -> Demand:
        return Demand(
            shape="32x32",
            request_id=request_id,
            arrived_s=0.0,
            deadline_s=5.0,
            weak_caps=(None,) * 10,
            min_level=4,
            max_level=16,
            is_hard=False,
        )

    driver.submit([image(0)])
    driver.start()
    for request_id in range(1, 9):
        assert driver.submit([image(request_id)]) is None
    refusal = driver.submit([image(9)])
    assert refusal == Refusal(reason="queue_full")
    assert asked_again(scheduler, driver, image(9))


def test_what_is_told_is_not_much_longer_than_it_takes(table: CostTable) -> None:
    """Half of the told time is too early, where all are taken who find room: nobody is sent away for much longer."""
    scheduler = RequestScheduler(table, ElasticPolicy(QualityTable(levels={4: 1.0})))
    driver = driven(scheduler)
    demand = Demand(
        shape="32x32", request_id=99, arrived_s=0.0, deadline_s=0.12, weak_caps=(None,) * 10, min_level=4, max_level=16
    )
    taken = [driver.submit([replace(demand, request_id=i)]) is None for i in range(9)]
    driver.start()
    assert not all(taken)

    def is_taken(scheduler: RequestScheduler, time_s: float) -> bool:
        return scheduler.would_take([at(demand, time_s)], time_s)

    told_s = retry_after_s(scheduler.copy(), is_taken, 0.0)
    assert 0 < told_s < 0.12
    driver.advance_to(told_s / 2)
    assert not scheduler.would_take([at(demand, told_s / 2)], told_s / 2)
