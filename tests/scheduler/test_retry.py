"""A refused request that comes back after the told time is taken, if nobody else came meanwhile."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from random import Random

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.forecast import retry_after_s
from elit_serve.scheduler.requests import Demand, Launch, Refusal

LATE_S = 0.003  # how much later than told a caller is back


class Device:
    """Takes what is predicted for every step; newcomers meet it in the middle of one."""

    def __init__(self, scheduler: RequestScheduler) -> None:
        self.scheduler = scheduler
        self.running: tuple[float, Launch] | None = None

    def run_until(self, until_s: float, now_s: float) -> None:
        self.begin(now_s)
        while self.running is not None and self.running[0] <= until_s:
            end_s, launch = self.running
            self.running = None
            self.scheduler.finished(launch.launch_id, end_s, launch.predicted_ms)
            self.begin(end_s)

    def begin(self, now_s: float) -> None:
        if self.running is None and isinstance(launch := self.scheduler.decide(now_s), Launch):
            self.running = now_s + launch.predicted_ms / 1000, launch


def at(demand: Demand, now_s: float) -> Demand:
    """The same request, later."""
    return replace(demand, arrived_s=now_s, deadline_s=now_s + demand.deadline_s - demand.arrived_s)


def asked_again(device: Device, demand: Demand, now_s: float) -> bool:
    """Whether it is taken after the time that it is told."""

    def is_taken(scheduler: RequestScheduler, time_s: float) -> bool:
        return scheduler.would_take([at(demand, time_s)], time_s)

    told_s = retry_after_s(device.scheduler.copy(), is_taken, now_s)
    later = Device(device.scheduler.copy())
    later.running = device.running
    back_s = now_s + told_s + LATE_S
    later.run_until(back_s, now_s)
    return later.scheduler.submit([at(demand, back_s)], back_s) is None


@pytest.mark.parametrize("admission", ["most", "quality"])
def test_who_comes_back_when_told_is_taken(table: CostTable, quality: QualityTable, admission: str) -> None:
    """Over random crowds of promised, soft and pinned work in two kinds of guidance, at about twice what fits."""
    settings = ElasticSettings(admission=admission)  # type: ignore[arg-type]
    answers: list[bool] = []
    for seed in range(12):
        random, ids, now_s = Random(seed), count(), 0.0
        device = Device(RequestScheduler(table, ElasticPolicy(quality, settings)))
        for _ in range(80):
            arrived_s = now_s + random.expovariate(1 / 0.012)
            device.run_until(arrived_s, now_s)
            now_s = arrived_s
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
            refusal = device.scheduler.submit([demand], now_s)
            if isinstance(refusal, Refusal) and refusal.reason == "overloaded":
                answers.append(asked_again(device, demand, now_s))
    assert len(answers) >= 100, "the traffic is too light to show anything"
    assert sum(answers) >= 0.97 * len(answers), f"{answers.count(False)} of {len(answers)} were refused again"


def test_who_finds_the_queue_full_is_told_when_there_is_room(table: CostTable, quality: QualityTable) -> None:
    device = Device(RequestScheduler(table, ElasticPolicy(quality, ElasticSettings(max_waiting=8))))

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

    device.scheduler.submit([image(0)], 0.0)
    device.begin(0.0)
    for request_id in range(1, 9):
        assert device.scheduler.submit([image(request_id)], 0.0) is None
    refusal = device.scheduler.submit([image(9)], 0.0)
    assert refusal == Refusal(reason="queue_full")
    assert asked_again(device, image(9), 0.0)


def test_what_is_told_is_not_much_longer_than_it_takes(table: CostTable, quality: QualityTable) -> None:
    """Half of the told time is too early: nobody is sent away for longer than that."""
    device = Device(RequestScheduler(table, ElasticPolicy(quality)))
    demand = Demand(
        shape="32x32", request_id=99, arrived_s=0.0, deadline_s=0.12, weak_caps=(None,) * 10, min_level=4, max_level=16
    )
    taken = [device.scheduler.submit([replace(demand, request_id=i)], 0.0) is None for i in range(8)]
    device.begin(0.0)
    assert not all(taken)

    def is_taken(scheduler: RequestScheduler, time_s: float) -> bool:
        return scheduler.would_take([at(demand, time_s)], time_s)

    told_s = retry_after_s(device.scheduler.copy(), is_taken, 0.0)
    assert 0 < told_s < 0.12
    device.run_until(told_s / 2, 0.0)
    assert not device.scheduler.would_take([at(demand, told_s / 2)], told_s / 2)
