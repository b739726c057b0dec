"""Each rival on a queue of a few requests, on a device that takes exactly what it says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elit_serve.bench.comparison.policies import CONTENDERS
from elit_serve.bench.rivals import BatchedFifo, BudgetAtAdmission, EwmaBudget, SlackFit, StepFifo, StepSlackFit
from elit_serve.bench.rivals.base import Rival
from elit_serve.bench.simulate.arrivals import Gamma
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import SimulatedRun, simulate
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


def asks(*times_ms: tuple[float, float]) -> list[Demand]:
    """(arrival, target) in milliseconds."""
    return [
        Demand(
            shape="32x32",
            request_id=index,
            arrived_s=arrived_ms / 1000,
            deadline_s=(arrived_ms + target_ms) / 1000,
            weak_caps=(1, 1),
            min_level=1,
            max_level=4,
        )
        for index, (arrived_ms, target_ms) in enumerate(times_ms)
    ]


def served(rival: type[Rival], *times_ms: tuple[float, float]) -> SimulatedRun:
    return simulate(rival(SETTING), asks(*times_ms), SimulatedDevice(TABLE))


def launches(run: SimulatedRun) -> list[tuple[int, int]]:
    return [(launch.kind.level, len(launch.request_ids)) for launch, *_ in run.launches]


def answers_ms(run: SimulatedRun) -> list[float | None]:
    return [None if fate.answered_s is None else round(1000 * fate.answered_s, 6) for fate in run.fates]


def levels(run: SimulatedRun) -> list[Sequence[int]]:
    return [fate.levels for fate in run.fates]


def test_dynamic_batching_makes_newcomers_wait_for_the_whole_batch_before_them() -> None:
    run = served(BatchedFifo, (0, 1000), (1, 1000), (2, 1000))
    assert launches(run) == [(4, 1), (4, 1), (4, 2), (4, 2)]
    assert answers_ms(run) == [13, 33, 33]


def test_joining_at_steps_takes_newcomers_in_at_the_next_step() -> None:
    run = served(StepFifo, (0, 1000), (1, 1000), (2, 1000))
    assert launches(run) == [(4, 1), (4, 3), (4, 2)]
    assert answers_ms(run) == [21, 31, 31]


def test_first_come_first_served_ignores_deadlines() -> None:
    run = served(StepFifo, *[(0, 1000)] * 4, (0, 14))
    assert not run.fates[4].is_on_time
    assert answers_ms(run)[4] == 36 + 12 + 1


def test_slackfit_takes_the_slowest_choice_that_the_most_urgent_has_time_for() -> None:
    run = served(SlackFit, (0, 12), (0, 12), (0, 12))
    assert launches(run) == [(1, 3), (1, 3)]
    assert answers_ms(run) == [11, 11, 11]


def test_slackfit_drops_who_cannot_make_it() -> None:
    run = served(SlackFit, (0, 100), (1, 6.5), (1, 100))
    assert levels(run) == [(4, 4), (), (4, 4)]
    assert run.fates[1].refusal is None
    assert not run.fates[1].is_on_time


def test_slackfit_never_changes_the_level_of_an_image() -> None:
    run = served(SlackFit, (0, 40), (3, 17))
    assert levels(run) == [(4, 4), (1, 1)]
    assert answers_ms(run) == [13, 19]


def test_slackfit_at_steps_lowers_the_level_of_who_is_in_flight() -> None:
    run = served(StepSlackFit, (0, 40), (3, 11))
    assert levels(run) == [(4, 1), (1, 1)]
    assert launches(run) == [(4, 1), (1, 1), (1, 2)]
    assert answers_ms(run) == [14, 14]


def test_slackfit_at_steps_refuses_whom_even_the_lowest_level_cannot_save() -> None:
    run = served(StepSlackFit, *[(0, 11.5)] * 4)
    assert [fate.refusal is None for fate in run.fates] == [True, True, True, False]
    assert answers_ms(run) == [11, 11, 11, None]


def test_a_budget_fixed_at_admission_is_the_highest_that_keeps_everybody_in_time() -> None:
    run = served(BudgetAtAdmission, (0, 28), (0, 28), (0, 28))
    assert levels(run) == [(4, 4), (4, 4), (1, 1)]
    assert answers_ms(run) == [21, 21, 27]


def test_a_budget_fixed_at_admission_leaves_no_room_for_the_next() -> None:
    run = served(BudgetAtAdmission, (0, 26), (0, 26), (0, 26))
    assert [fate.refusal is None for fate in run.fates] == [True, True, False]


def test_a_global_budget_follows_the_arrival_rate() -> None:
    lonely = served(EwmaBudget, (0, 26), (5000, 26))
    crowded = served(EwmaBudget, *[(2.0 * index, 26) for index in range(1000)])
    assert levels(lonely) == [(4, 4), (4, 4)]
    assert {level for late in levels(crowded)[-100:] for level in late} == {1}


@given(
    policy=st.sampled_from(sorted(CONTENDERS)),
    seed=st.integers(0, 1000),
    load=st.floats(0.2, 3.0),
    cv=st.floats(0.5, 4.0),
)
@settings(max_examples=60, deadline=None)
def test_every_policy_accounts_for_every_request(policy: str, seed: int, load: float, cv: float) -> None:
    demands = draw_workload(SETTING, Gamma(cv=cv), load=load, slo_scales=(1.2, 2, 5), count=30, seed=seed)
    scheduler = CONTENDERS[policy].make(SETTING, QualityTable(levels={1: 0.5, 4: 1.0}))
    run = simulate(scheduler, demands, SimulatedDevice(TABLE, noise=0.1, seed=seed))
    for fate in run.fates:
        assert len(fate.levels) <= 2
        assert (fate.answered_s is not None) <= (len(fate.levels) == 2)
        assert fate.refusal is None or not fate.levels
    assert sum(len(launch.request_ids) for launch, *_ in run.launches) == sum(len(fate.levels) for fate in run.fates)
    assert all(scheduler.state(demand.request_id) is None for demand in demands)


def test_noise_is_drawn_by_its_seed_and_bias_is_constant() -> None:
    runs = [
        simulate(StepFifo(SETTING), asks(*[(0, 1000)] * 9), SimulatedDevice(TABLE, noise=0.1, bias=0.5, seed=seed))
        for seed in (1, 1, 2)
    ]
    assert runs[0].launches == runs[1].launches
    assert runs[0].launches != runs[2].launches
    exact = simulate(StepFifo(SETTING), asks((0, 1000)), SimulatedDevice(TABLE, bias=0.5))
    assert [launched.took_ms for launched in exact.launches] == pytest.approx([9.0, 9.0])
