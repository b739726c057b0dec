"""The simulator on a run's own arrivals: figures that follow from the cost table by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elit_serve.bench.load.compare import (
    POLICIES,
    Wish,
    as_served,
    attainment_points,
    check_comparable,
    comparison,
    comparison_table,
    predicted,
)
from elit_serve.bench.load.compare import simulated as as_predicted
from elit_serve.bench.load.plan import Capacity, full_plan, open_calls
from elit_serve.bench.load.report import Summary
from elit_serve.bench.load.run import LoadOptions, LoadReport, Target
from elit_serve.bench.load.sender import PlannedCall
from elit_serve.bench.simulate.arrivals import open_arrivals
from elit_serve.bench.simulate.device import Charges, SimulatedDevice
from elit_serve.bench.simulate.quality_file import read_measurements
from elit_serve.bench.simulate.workload import Setting, draw_workload
from elit_serve.catalogue import bundled_models
from elit_serve.client import GuidanceInfo, LevelInfo, Model, SamplingInfo
from elit_serve.errors import InvalidInput
from elit_serve.plans.levels import Budgets
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.costs import CostTable
from elit_serve.scheduler.quality import placeholder_quality
from tests.bench.conftest import THREE

# A step takes 2.5 ms per level alone, and half of that per image in a batch of 4; an answer takes 2 ms more.
TABLE = CostTable(
    steps_ms={
        (StepKind("32x32", level, weak), batch): 2.5 * level * (1 if batch == 1 else 2)
        for level in (1, 2, 4)
        for weak in (None, 1)
        for batch in (1, 4)
    },
    overhead_ms=2.0,
)

WISH = Wish(shapes={None: "32x32"}, weak_caps=(1, 1, 1, None), levels=(1, 2, 4))
BUDGETS = Budgets(levels=(1, 2, 4), latents_per_group=4)
COMPARABLE = LoadOptions(url="http://127.0.0.1:1", cost=Path("some.json"))


def simulated(calls: list[PlannedCall], wish: Wish = WISH, policy: str = "fixed") -> Summary:
    scheduler = RequestScheduler(TABLE, POLICIES[policy](placeholder_quality(TABLE.levels)))
    return predicted(calls, wish, scheduler=scheduler, device=SimulatedDevice(TABLE), budgets=BUDGETS)


def call(at_s: float, latency_ms: float) -> PlannedCall:
    return PlannedCall(at_s=at_s, label=0, seed=0, latency_ms=latency_ms)


def test_a_device_is_charged_what_a_server_adds() -> None:
    """Half a second apart, 2 ms from rest to the first step, 1 between launches and 0.5 for the answer."""
    charges = Charges(gap_ms=1.0, rested_ms=2.0, response_ms=0.5)
    scheduler = RequestScheduler(TABLE, POLICIES["fixed"](placeholder_quality(TABLE.levels)))
    calls = [call(0.5, 100.0), call(1.0, 100.0)]
    figures = predicted(
        calls, WISH, scheduler=scheduler, device=SimulatedDevice(TABLE, charges=charges), budgets=BUDGETS
    )
    assert figures.e2el_ms.median == pytest.approx(2.0 + 4 * 10 + 3 * 1.0 + 2.0 + 0.5)


@pytest.mark.parametrize(("response_ms", "refused"), [(0.0, {}), (8.0, {"infeasible": 1})])
def test_a_promise_counts_as_much_for_http_as_the_servers_do(response_ms: float, refused: dict[str, int]) -> None:
    """The picture takes 42 ms alone, and 2.61 that a server adds where it has rested."""
    levels = tuple(LevelInfo(level=level, budget=level / 4, latency_ms=1.0) for level in WISH.levels)
    guidance = GuidanceInfo(method="ccfg", scale=2.0, weak_level=1, interval=(0.0, 0.75))
    sampling = SamplingInfo(steps=4, guidance=guidance)
    model = Model(id="m", classes=("a",), levels=levels, sampling=sampling, response_ms=response_ms)
    plan, calls = full_plan(sampling, 4, full_level=4), (call(0.0, 49.0), call(1.0, 100.0))
    target = Target(model=model, table=TABLE, plan=plan, subjects=THREE)
    report = LoadReport(facts={}, target=target, calls=calls, records=(), summary=simulated(list(calls)))
    figures = as_predicted(report, COMPARABLE, "fixed")
    assert figures.refused == refused
    assert figures.completed == 2 - len(refused)


def test_lonely_requests_take_what_the_table_says() -> None:
    figures = simulated([call(0.0, 100.0), call(1.0, 43.0), call(2.0, 41.0)])
    assert figures.refused == {"infeasible": 1}
    assert figures.slo_attainment_rate == pytest.approx(2 / 3)
    assert figures.accepted_attainment == 1
    assert (figures.e2el_ms.median, figures.budget) == (pytest.approx(42), 1)


def test_a_prompt_is_encoded_before_the_first_picture_of_it() -> None:
    """Each takes 42 ms alone, and 8 more while its prompt is not known."""
    wish, prompts = replace(WISH, text_ms=8.0), ("a rose", "a rose", "a tulip")
    calls = [replace(call(float(at), 49.0), label=None, prompt=prompt) for at, prompt in enumerate(prompts)]
    assert [demand.prepare_s for demand in wish.demands(calls)] == [0.008, 0.0, 0.008]
    patient = [replace(each, latency_ms=100.0) for each in calls]
    assert simulated(patient, wish).e2el_ms.mean == pytest.approx(42 + 8 * 2 / 3)
    assert simulated(calls, wish).refused == {"infeasible": 2}
    assert simulated([call(0.0, 100.0)], wish).e2el_ms.mean == pytest.approx(42), "a class"


def test_a_pinned_level_is_simulated_as_such() -> None:
    figures = simulated([call(0.0, 100.0), call(1.0, 13.0)], replace(WISH, pinned_level=1))
    assert (figures.e2el_ms.mean, figures.budget, figures.slo_attainment_rate) == (pytest.approx(12), 0.25, 1)


def test_best_effort_comes_late_where_a_promise_would_be_refused() -> None:
    figures = simulated([call(0.0, 100.0), call(1.0, 20.0)], replace(WISH, is_hard=False))
    assert (figures.completed, figures.refused, figures.slo_attainment_rate) == (2, {}, 0.5)


def test_a_burst_is_met_with_less_budget_by_the_elastic_policy_only() -> None:
    burst = [call(0.001 * index, 160.0) for index in range(12)]
    elastic, fixed = simulated(burst, policy="elastic"), simulated(burst, policy="fixed")
    assert elastic.accepted_attainment == 1
    assert elastic.budget is not None
    assert elastic.budget < 1
    assert fixed.budget == 1
    assert fixed.expired > 0
    assert attainment_points(elastic, fixed) > 0


def test_a_model_with_measured_plans_is_simulated_with_them() -> None:
    """More of a burst is taken where its pictures may be finished in fewer steps."""
    measured = read_measurements(bundled_models() / "garden64" / "quality.json")
    steps = measured.file.plans[-1].steps
    table = replace(
        TABLE,
        steps_ms={
            (StepKind("3x64x64", level, weak), batch): (1.0 + level / 16) * (0.5 + batch / 8)
            for level in (1, 4, 16)
            for weak in (None, 1)
            for batch in (1, 4)
        },
    )
    wish = Wish(shapes={None: "3x64x64"}, weak_caps=(1,) * steps, levels=table.levels)
    burst = [call(0.001 * index, 100.0) for index in range(12)]

    def figures(is_open: bool) -> Summary:
        scheduler = as_served(table, "elastic", measured, is_open=is_open)
        return predicted(burst, wish, scheduler=scheduler, device=SimulatedDevice(table), budgets=BUDGETS)

    chosen, named = figures(is_open=True), figures(is_open=False)
    assert chosen.accepted_attainment == 1
    assert chosen.completed > named.completed


def test_the_difference_is_in_percentage_points() -> None:
    all_met, half_met = simulated([call(0.0, 100.0), call(1.0, 100.0)]), simulated([call(0.0, 100.0), call(1.0, 10.0)])
    told = comparison(half_met, all_met, "fixed")
    assert told["attainment_difference_points"] == pytest.approx(-50)
    assert (
        comparison_table(half_met, all_met, "fixed").title
        == "The server's attainment is -50.0 points from the simulator's"
    )


def test_a_run_sends_what_the_simulator_draws_for_the_same_seed() -> None:
    setting = Setting(table=TABLE, num_steps=4, weak_cap=1)
    source = open_arrivals("gamma:cv=2")
    scales = (2.0, 3.0, 5.0)
    drawn = draw_workload(setting, source, load=0.7, slo_scales=scales, count=30, seed=5)
    capacity = Capacity.measured(TABLE, weak_caps=(1,) * 4)
    targets_ms = [capacity.target_ms(scale) for scale in scales]
    sent = open_calls(source, count=30, rate_per_s=capacity.rate_at(0.7), targets_ms=targets_ms, subjects=THREE, seed=5)
    wish = replace(WISH, weak_caps=(1,) * 4)
    for ours, theirs in zip([wish.demand(index, call) for index, call in enumerate(sent)], drawn, strict=True):
        assert ours.arrived_s == pytest.approx(theirs.arrived_s)
        assert ours.deadline_s == pytest.approx(theirs.deadline_s)
        assert replace(ours, arrived_s=0, deadline_s=0) == replace(theirs, arrived_s=0, deadline_s=0)


@pytest.mark.parametrize(
    ("options", "policy", "named"),
    [
        (COMPARABLE, "slackfit", "elastic"),
        (replace(COMPARABLE, cost=None), "elastic", "--cost"),
        (replace(COMPARABLE, slo_scales=()), "elastic", "targets"),
        (replace(COMPARABLE, closed_loop=4), "elastic", "open loop"),
    ],
)
def test_what_cannot_be_simulated_is_said_before_the_run(options: LoadOptions, policy: str, named: str) -> None:
    check_comparable(COMPARABLE, "elastic")
    with pytest.raises(InvalidInput, match=named):
        check_comparable(options, policy)
