"""The clairvoyant bound: closed forms, and no schedule above it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elit_serve.bench.bound.bound import ClairvoyantBound
from elit_serve.bench.bound.hull import cost_planes
from elit_serve.bench.bound.programme import Programme
from elit_serve.bench.comparison.looseness import best_schedule
from elit_serve.bench.comparison.policies import CONTENDERS
from elit_serve.bench.simulate.arrivals import Gamma
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import simulate
from elit_serve.bench.simulate.workload import Setting, draw_workload
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, QualityTable
from elit_serve.scheduler.requests import Demand

# n images take 2 + n ms at level 1 and 2 + 4n at level 4; an answer takes 1 ms more. Two steps an image.
TABLE = CostTable(
    steps_ms={(StepKind("32x32", level, 1), batch): 2.0 + level * batch for level in (1, 4) for batch in (1, 2, 4)},
    overhead_ms=1.0,
)
SETTING = Setting(table=TABLE, num_steps=2, weak_cap=1)
QUALITY = QualityTable(levels={1: 0.6, 4: 1.0})


def bound(*times_ms: tuple[float, float], quality: QualityTable = QUALITY) -> float:
    """Of requests given as (arrival, due time of the last step) in milliseconds."""
    demands = [
        Demand(
            shape="32x32",
            request_id=index,
            arrived_s=arrived_ms / 1000,
            deadline_s=(due_ms + TABLE.overhead_ms) / 1000,
            weak_caps=(1, 1),
            min_level=1,
            max_level=4,
        )
        for index, (arrived_ms, due_ms) in enumerate(times_ms)
    ]
    return ClairvoyantBound(SETTING, quality).mean_quality(demands)


@pytest.mark.parametrize(
    ("due_ms", "best"),
    [
        (12.0, 1.0),  # two full steps of 6 ms
        (9.0, 0.8),  # half of the way from 2 × 3 ms to 2 × 6 ms
        (6.0, 0.6),  # just two of the lowest
        (3.0, 0.3),  # half an image for half its worth, which no schedule reaches
        (50.0, 1.0),
    ],
)
def test_one_request_alone(due_ms: float, best: float) -> None:
    assert bound((0, due_ms)) == pytest.approx(best, abs=1e-4)


def test_two_together_share_the_overhead_of_their_launches() -> None:
    assert bound((0, 8), (0, 8)) == pytest.approx(0.6, abs=1e-4)  # 2 × (2 + 2)
    assert bound((0, 20), (0, 20)) == pytest.approx(1.0, abs=1e-4)  # 2 × (2 + 8)
    assert bound((0, 14), (0, 14)) == pytest.approx(0.8, abs=1e-4)  # half of the way between


def test_two_apart_cannot_share() -> None:
    assert bound((0, 9), (9, 18)) == pytest.approx(0.8, abs=1e-4)


def test_what_nobody_can_do_in_time_is_worth_nothing() -> None:
    assert bound((0, 12), (0, -0.5)) == pytest.approx(0.5, abs=1e-4)


def test_an_even_level_is_worth_more_than_a_mixture_under_a_concave_quality() -> None:
    table = CostTable(steps_ms={(StepKind("32x32", level, 1), 1): 2.0 + level for level in (1, 2, 3)}, overhead_ms=0.0)
    setting = Setting(table=table, num_steps=2, weak_cap=1)
    bent = QualityTable(levels={1: 0.5, 2: 0.9, 3: 1.0})
    demand = Demand(
        shape="32x32", request_id=0, arrived_s=0, deadline_s=0.008, weak_caps=(1, 1), min_level=1, max_level=3
    )
    assert ClairvoyantBound(setting, bent).mean_quality([demand]) == pytest.approx(0.9, abs=1e-4)


def test_late_steps_that_count_more_may_be_worth_more_than_the_mean() -> None:
    weighty = replace(QUALITY, late=2.0)
    assert bound((0, 9), quality=weighty) >= weighty.of_steps([1, 4]) > QUALITY.of_steps([1, 4])
    assert 0.6 <= bound((0, 6), quality=weighty) < 0.8  # two of the lowest
    assert bound((0, 12), quality=weighty) == pytest.approx(1.0, abs=1e-4)


@given(duals=st.lists(st.floats(0, 10), min_size=2, max_size=2))
def test_any_duals_certify_a_bound(duals: list[float]) -> None:
    assert textbook_programme().certified(np.array(duals)) >= 2.8 - 1e-9


def test_the_solver_s_duals_certify_a_tight_one() -> None:
    assert textbook_programme().bound() == pytest.approx(2.8, rel=1e-4)
    assert textbook_programme().bound() >= 2.8 - 1e-12


def textbook_programme() -> Programme:
    """Maximise x + y with x + 2y ≤ 4, 3x + y ≤ 6, x and y in [0, 5]: 2.8 at (1.6, 1.2)."""
    programme = Programme()
    columns = programme.columns(np.full(2, 5.0), gain=1.0).all
    rows = np.array([0, 0, 1, 1])
    programme.rows(np.array([4.0, 6.0]), (rows, columns[[0, 1, 0, 1]], [1.0, 2.0, 3.0, 1.0]))
    return programme


@st.composite
def settings_of_any_table(draw: st.DrawFn) -> Setting:
    """Costs that need not be convex, nor even rise with the batch; padded to measured batches or interpolated."""
    cost = st.floats(1, 20)
    steps_ms = {
        (StepKind("32x32", level, 1), batch): draw(cost) * (1 + batch / 4) for level in (1, 3, 8) for batch in (1, 2, 5)
    }
    table = CostTable(steps_ms=steps_ms, overhead_ms=draw(st.floats(0, 5)), pads_batches=draw(st.booleans()))
    return Setting(table=table, num_steps=draw(st.integers(1, 4)), weak_cap=1)


@given(setting=settings_of_any_table())
@settings(max_examples=25, deadline=None)
def test_no_launch_costs_less_than_the_planes_say(setting: Setting) -> None:
    planes = cost_planes(setting, 5)
    for level in setting.levels:
        for batch in range(1, 6):
            excess = batch * (level - 1) / 7
            floor = max(p.launch_ms + p.image_ms * batch + p.excess_ms * excess for p in planes)
            assert floor <= 1000 * setting.step_s(level, batch) * (1 + 1e-9)


@given(
    setting=settings_of_any_table(),
    policy=st.sampled_from(sorted(CONTENDERS)),
    load=st.floats(0.2, 2.5),
    seed=st.integers(0, 1000),
    lowest=st.floats(0.2, 1.0),
    late=st.floats(1, 3),
)
@settings(max_examples=20, deadline=None)
def test_no_policy_beats_the_bound(
    setting: Setting, policy: str, load: float, seed: int, lowest: float, late: float
) -> None:
    quality = QualityTable(levels={1: lowest, 8: 1.0}, late=late)
    demands = draw_workload(setting, Gamma(cv=1.5), load=load, slo_scales=(0.8, 1.5, 4), count=12, seed=seed)
    run = simulate(CONTENDERS[policy].make(setting, quality), demands, SimulatedDevice(setting.table))
    reached = sum(fate.worth(quality) for fate in run.fates) / 12
    assert reached <= ClairvoyantBound(setting, quality).mean_quality(demands) + 1e-9


def test_more_load_never_helps() -> None:
    def at(load: float) -> float:
        demands = draw_workload(SETTING, Gamma(cv=1), load=load, slo_scales=(2, 3), count=40, seed=5)
        return ClairvoyantBound(SETTING, QUALITY).mean_quality(demands)

    bounds = [at(load) for load in (0.5, 1.0, 2.0, 4.0)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] < 0.9 * bounds[0]


def test_a_search_finds_what_is_possible_and_no_more() -> None:
    setting = Setting(table=TABLE, num_steps=10, weak_cap=1)
    demands = draw_workload(setting, Gamma(cv=1), load=1.0, slo_scales=(2, 3), count=8, seed=1)
    found = best_schedule(setting, QUALITY, demands, seed=0, rounds=1500)
    highest = ClairvoyantBound(setting, QUALITY).mean_quality(demands)
    assert 0.85 * highest < found <= highest
