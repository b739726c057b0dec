"""Promises have to spare what the device has lately shown that its steps deviate by."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from elit_serve.bench.comparison.tournament import Scene, served, source_of
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import simulate
from elit_serve.bench.simulate.workload import Mix, draw_workload, mixed, scales_of
from elit_serve.scheduler import CostTable, ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.costs import DEVIATION, CorrectedCosts
from elit_serve.scheduler.drive import Driver
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.promises import reserve_s
from elit_serve.scheduler.policy.view import View
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.state import Tracked

MODELS = Path(__file__).parents[2] / "models"
XL = Scene(cost=str(MODELS / "recipes" / "imagenet512-elit-dit-xl2" / "latency" / "nvidia-h200.json"))
GARDEN = Scene(
    cost=str(MODELS / "garden64" / "latency" / "nvidia-h200.json"), quality=str(MODELS / "garden64" / "quality.json")
)


def image(request_id: int, *, at_s: float = 0.0, within_s: float = 1.0) -> Demand:
    """Of ten steps, which take 30 ms at the lowest level, and 10 ms more follow them."""
    return Demand(
        shape="32x32",
        request_id=request_id,
        arrived_s=at_s,
        deadline_s=at_s + within_s,
        weak_caps=(None,) * 10,
        min_level=4,
        max_level=16,
        is_hard=True,
    )


def observed(costs: CorrectedCosts, *, noise: float, bias: float = 1.0, launches: int = 2000) -> float:
    """What launches of 5 ms are found to deviate by."""
    rng = Random(1)
    for _ in range(launches):
        costs.observe(5.0, 5.0 * bias * rng.gauss(1.0, noise))
    return costs.deviation


def after_some_seconds(table: CostTable, quality: QualityTable, *, noise: float) -> tuple[RequestScheduler, float]:
    """A scheduler that has run a hundred pictures on a device with this noise, and when."""
    scheduler = RequestScheduler(table, ElasticPolicy(quality))
    driver = Driver(scheduler, SimulatedDevice(table, noise=noise))
    for request_id in range(100):
        assert driver.submit([image(request_id, at_s=driver.now_s)]) is None
        driver.advance_to(float("inf"))
    return scheduler, driver.now_s


def least_target_ms(scheduler: RequestScheduler, now_s: float) -> int:
    refusal = scheduler.submit([image(-1, at_s=now_s, within_s=0.001)], now_s)
    assert refusal is not None
    assert refusal.min_latency_ms is not None
    return refusal.min_latency_ms


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1, 0.15])
def test_the_deviation_is_that_of_the_device_however_slow_it_is(table: CostTable, noise: float) -> None:
    for bias in (1.0, 1.3):
        assert observed(CorrectedCosts(table), noise=noise, bias=bias) == pytest.approx(noise, rel=0.2, abs=0.02)


def test_a_stall_makes_it_careful_for_a_moment(table: CostTable) -> None:
    costs = CorrectedCosts(table)
    before = observed(costs, noise=0.01)
    costs.observe(5.0, 5000.0)
    assert 2 * before < costs.deviation < 0.05
    assert observed(costs, noise=0.01) == pytest.approx(before, abs=0.002)


def test_a_device_that_has_rested_is_as_unknown_as_at_first(table: CostTable) -> None:
    for noise in (0.0, 0.3):
        costs = CorrectedCosts(table)
        found = observed(costs, noise=noise)
        costs.rest(20)
        assert min(found, DEVIATION) < costs.deviation < max(found, DEVIATION)
        costs.rest(200)
        assert costs.deviation == pytest.approx(DEVIATION, abs=0.001)


def test_a_steady_device_can_promise_sooner_than_an_unknown_or_an_unsteady_one(
    table: CostTable, quality: QualityTable
) -> None:
    unknown = least_target_ms(RequestScheduler(table, ElasticPolicy(quality)), 0.0)
    steady, unsteady = (least_target_ms(*after_some_seconds(table, quality, noise=noise)) for noise in (0.0, 0.2))
    assert 40 <= steady <= 41, "nothing is kept to spare"
    assert steady < unknown < unsteady


def test_who_comes_back_with_the_target_that_he_was_told_is_taken_and_an_open_plan_is_told_so(
    table: CostTable, quality: QualityTable
) -> None:
    for noise in (0.0, 0.2):
        scheduler, now_s = after_some_seconds(table, quality, noise=noise)
        told_ms = least_target_ms(scheduler, now_s)
        assert scheduler.crowd_with(1, now_s).deviation == pytest.approx(noise, rel=0.2, abs=0.02)
        assert scheduler.submit([image(-2, at_s=now_s, within_s=told_ms / 1000)], now_s) is None


def test_a_promise_keeps_its_margin_where_plans_are_made_anew(table: CostTable, quality: QualityTable) -> None:
    policy, costs, demand = ElasticPolicy(quality), CorrectedCosts(table), image(1)
    observed(costs, noise=0.0)
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    assert policy.admit([demand], view) is None
    (promised,) = policy.owed(view)
    assert observed(costs, noise=0.2) > 0.1
    policy.resume([Tracked(demand=demand)], view)
    assert policy.owed(view) == [promised]
    policy = ElasticPolicy(quality)
    policy.resume([Tracked(demand=demand)], view)
    assert policy.owed(view)[0].due_s < promised.due_s, "what it does not know it plans as the device is now"


def test_what_a_launch_of_many_may_take_longer_is_kept_beside_what_promises_have_to_spare(table: CostTable) -> None:
    """Two tenths of 10 ms, or of 2 ms, where a promise has three tenths of 6 ms for a step of its own."""
    costs = CorrectedCosts(table)
    view = View(now_s=0.0, start_s=0.0, costs=costs, max_batch=8, num_waiting=0)
    work = Work(image(0), costs, latest_s=0.99, margin_s=0.0018, order=0.99)
    assert reserve_s([work], 0.010, 3.0, view) == pytest.approx(0.0002)
    assert reserve_s([work], 0.002, 3.0, view) == 0
    assert reserve_s([], 0.010, 3.0, view) == 0, "nobody has a promise"


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_promises_of_mixed_traffic_are_kept_on_an_exact_device_and_nearly_all_on_a_noisy_one(noise: float) -> None:
    """Pins, two kinds of guidance, two classes and several pictures at once. Over many more it is one in a thousand."""
    mix = Mix(pins=0.2, unguided=0.2, batch_class=0.1, images=(1, 1, 2))
    accepted = late = 0
    for scene, targets, load in ((XL, "short", 0.7), (XL, "bimodal", 0.7), (GARDEN, "usual", 0.5)):
        setting, curves = served(scene)
        demands = draw_workload(
            setting, source_of("gamma:cv=2"), load=load, slo_scales=scales_of(targets), count=150, seed=1
        )
        scheduler = RequestScheduler(setting.table, ElasticPolicy(next(iter(curves.values()))))
        run = simulate(scheduler, mixed(demands, mix, setting, 1), SimulatedDevice(setting.table, noise=noise, seed=1))
        assert scheduler.counters.decision_errors == 0
        taken = [fate for fate in run.fates if fate.refusal is None and fate.demand.is_hard]
        accepted += len(taken)
        late += sum(not fate.is_on_time for fate in taken)
    assert accepted > 400
    assert late <= (0.003 * accepted if noise else 0), f"{late} of {accepted} promises broken"
