"""A forecast foretells what then happens, and leaves no trace."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from elit_serve.scheduler import CostTable, ElasticPolicy, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.forecast import Course, course_of
from elit_serve.scheduler.requests import Demand, Launch, Priority, Refusal
from elit_serve.scheduler.state import State

MakeScheduler = Callable[[], RequestScheduler]


@pytest.fixture(params=["elastic", "fixed"])
def make_scheduler(request: pytest.FixtureRequest, table: CostTable, quality: QualityTable) -> MakeScheduler:
    def make() -> RequestScheduler:
        policy = ElasticPolicy(quality) if request.param == "elastic" else FixedPolicy()
        return RequestScheduler(table, policy)

    return make


def image(request_id: int, arrived_s: float, random: Random) -> Demand:
    return Demand(
        shape="32x32",
        request_id=request_id,
        arrived_s=arrived_s,
        deadline_s=arrived_s + random.uniform(0.05, 1.0),
        weak_caps=(4,) * random.randint(2, 12),
        min_level=4,
        max_level=16,
        is_hard=random.random() < 0.7,
        priority=random.choice(list(Priority)),
    )


def run(scheduler: RequestScheduler, start_s: float, launches: int) -> tuple[float, list[Launch]]:
    """So many launches, each reported when it is predicted to end."""
    decided = []
    for _ in range(launches):
        decision = scheduler.decide(start_s)
        if decision is None:
            break
        decided.append(decision)
        start_s += decision.predicted_ms / 1000
        scheduler.finished(decision.launch_id, start_s, 1.1 * decision.predicted_ms)
    return start_s, decided


@pytest.mark.parametrize("seed", range(20))
def test_what_is_forecast_is_what_happens_when_nobody_else_comes(make_scheduler: MakeScheduler, seed: int) -> None:
    random, scheduler, now_s = Random(seed), make_scheduler(), 0.0
    for request_id in range(8):
        scheduler.submit([image(request_id, now_s, random)], now_s)
        now_s, _ = run(scheduler, now_s, random.randint(0, 4))
    if isinstance(launch := scheduler.decide(now_s), Launch):  # one is on the device meanwhile
        assert scheduler.outstanding == (launch,)
    newcomer = image(99, now_s, random)
    foreseen = course_of(scheduler.copy(), [newcomer], now_s)
    refusal = scheduler.submit([newcomer], now_s)
    if isinstance(foreseen, Refusal):
        assert refusal == foreseen
        return
    assert refusal is None
    if isinstance(launch, Launch):
        now_s = scheduler.busy_until_s
        scheduler.finished(launch.launch_id, now_s)
    started_s = None
    while scheduler.state(99) is not State.FINISHING:
        decision = scheduler.decide(now_s)
        assert isinstance(decision, Launch)
        started_s = now_s if started_s is None and 99 in decision.request_ids else started_s
        now_s += decision.predicted_ms / 1000
        scheduler.finished(decision.launch_id, now_s)
    steps = (scheduler.progress_of(99),)
    assert foreseen == Course(steps=steps, started_s=started_s or 0.0, ended_s=now_s, encoded_s=now_s)


@pytest.mark.parametrize("seed", range(20))
def test_forecasts_change_nothing(make_scheduler: MakeScheduler, seed: int) -> None:
    random, now_s = Random(seed), 0.0
    plain, watched = make_scheduler(), make_scheduler()
    for request_id in range(16):
        demand = image(request_id, now_s, random)
        course_of(watched.copy(), [image(-1, now_s, Random(request_id)), image(-2, now_s, Random(1))], now_s)
        assert watched.submit([demand], now_s) == plain.submit([demand], now_s)
        launches = random.randint(0, 6)
        ended_s, decided = run(plain, now_s, launches)
        assert run(watched, now_s, launches) == (ended_s, decided)
        assert watched.counters == plain.counters
        now_s = ended_s
    assert watched.correction(now_s) == plain.correction(now_s) > 1


def test_a_refusal_is_foreseen(make_scheduler: MakeScheduler) -> None:
    impossible = Demand(
        shape="32x32", request_id=0, arrived_s=0.0, deadline_s=0.001, weak_caps=(None,) * 4, min_level=4, max_level=16
    )
    foreseen = course_of(make_scheduler(), [impossible], 0.0)
    assert isinstance(foreseen, Refusal)
    assert foreseen == make_scheduler().submit([impossible], 0.0)
    assert foreseen.reason == "infeasible"
