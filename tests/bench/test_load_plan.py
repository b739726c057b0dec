"""What is asked, and when: drawn by a seed, relative to a device whose figures are worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest

from elit_serve.bench.load.plan import Capacity, budgets_of, full_plan, open_calls, pictures, share_of_new_prompts
from elit_serve.bench.load.run import burstiness_trace
from elit_serve.bench.load.sender import PlannedCall
from elit_serve.bench.load.subjects import Subject
from elit_serve.bench.simulate.arrivals import open_arrivals
from elit_serve.client import GuidanceInfo, LevelInfo, Model, SamplingInfo
from elit_serve.errors import InvalidInput
from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance, GuidanceMethod
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CostTable
from tests.bench.conftest import THREE

# Milliseconds: a full step takes 8 alone and 16 for a batch of 4, without guidance 4 and 10.
TABLE = CostTable(
    steps_ms={
        **{(StepKind("32x32", 4, weak), 1): cost for weak, cost in ((1, 8.0), (4, 9.0), (None, 4.0))},
        **{(StepKind("32x32", 4, weak), 4): cost for weak, cost in ((1, 16.0), (4, 18.0), (None, 10.0))},
        **{(StepKind("32x32", 1, weak), batch): 2.0 * batch for weak in (1, None) for batch in (1, 4)},
    },
    overhead_ms=6.0,
)

LEVELS = tuple(LevelInfo(level=level, budget=level / 4, latency_ms=50.0 * level) for level in (1, 2, 4))
MODEL = Model(id="m", classes=("a", "b", "c"), levels=LEVELS, sampling=SamplingInfo(steps=10))


def calls(**changes: Any) -> tuple[PlannedCall, ...]:
    asked = {"count": 50, "rate_per_s": 2.0, "targets_ms": (100.0, 200.0), "subjects": THREE, "seed": 0, **changes}
    return open_calls(open_arrivals("poisson"), **asked)


def test_load_1_and_a_lonely_request_by_hand() -> None:
    capacity = Capacity.measured(TABLE, weak_caps=(1,) * 8 + (None,) * 2)
    assert capacity.solo_ms == pytest.approx(8 * 8 + 2 * 4 + 6)
    assert capacity.rate_per_s == pytest.approx(4 / (8 * 0.016 + 2 * 0.010))
    assert capacity.rate_at(0.5) == pytest.approx(capacity.rate_per_s / 2)
    assert capacity.target_ms(3) == pytest.approx(3 * 78)


def test_load_1_and_a_lonely_request_have_prompts_to_encode() -> None:
    """Of six requests for two prompts, four are for one that was encoded before."""
    prompts = tuple(Subject(prompt=prompt) for prompt in ("a rose", "a tulip"))
    share = share_of_new_prompts(prompts, seed=0, count=6)
    assert share == pytest.approx(1 / 3)
    assert share_of_new_prompts(THREE, seed=0, count=6) == 0, "classes"
    weak_caps = (1,) * 8 + (None,) * 2
    known = Capacity.measured(TABLE, weak_caps)
    capacity = Capacity.measured(replace(TABLE, text_ms=9.0), weak_caps, new_prompts=share)
    assert known.solo_ms is not None
    assert known.rate_per_s is not None
    assert capacity.solo_ms == pytest.approx(known.solo_ms + 3)
    assert capacity.rate_per_s == pytest.approx(1 / (1 / known.rate_per_s + 0.003))


def test_without_a_table_the_server_says_what_a_request_takes_alone_but_not_what_load_1_is() -> None:
    capacity = Capacity.reported(MODEL)
    assert capacity.target_ms(2) == 400
    with pytest.raises(InvalidInput, match="--rate"):
        capacity.rate_at(1.0)


def test_a_server_that_does_not_say_needs_a_table() -> None:
    silent = MODEL.model_copy(update={"levels": (LevelInfo(level=4, budget=1.0),)})
    with pytest.raises(InvalidInput, match="cost"):
        Capacity.reported(silent).target_ms(2)


@pytest.mark.parametrize("method", ["none", "cfg", "ag", "ccfg"])
@pytest.mark.parametrize(
    ("scale", "interval", "shift"), [(1.0, (0.0, 1.0), 1.0), (2.0, (0.1, 0.8), 1.0), (2.0, (0.25, 0.75), 3.0)]
)
def test_guided_steps_are_those_that_the_sampler_guides(
    method: GuidanceMethod, scale: float, interval: tuple[float, float], shift: float
) -> None:
    guidance = Guidance(method=method, scale=scale, weak_level=2, interval=interval)
    wanted = [guidance.weak_level_at(4) if guidance.applies_at(t) else None for t in time_grid(40, shift)[:-1]]
    told = GuidanceInfo(method=method, scale=scale, weak_level=2, interval=interval)
    sampling = SamplingInfo(steps=40, time_shift=shift, guidance=told)
    assert list(full_plan(sampling, 40, full_level=4).weak_caps(4)) == wanted


@pytest.mark.parametrize(("budget", "level"), [(1.0, 4), (0.75, 4), (0.7, 4), (0.6, 2), (0.375, 2), (0.01, 1)])
def test_a_budget_is_the_level_that_the_server_makes_of_it(budget: float, level: int) -> None:
    assert budgets_of(MODEL).level_of(budget) == level


@pytest.mark.parametrize("budget", [0.0, 1.5, float("nan")])
def test_a_budget_out_of_range_is_named(budget: float) -> None:
    with pytest.raises(InvalidInput, match="budget"):
        budgets_of(MODEL).level_of(budget)


def test_calls_come_at_their_rate_with_targets_and_classes_of_those_given() -> None:
    planned = calls(count=400)
    times = [call.at_s for call in planned]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] == pytest.approx(399 / 2)
    assert {call.latency_ms for call in planned} == {100, 200}
    assert {call.label for call in planned} == {0, 1, 2}
    assert len({call.seed for call in planned}) == 400


def test_a_seed_decides_everything() -> None:
    assert calls() == calls()
    other = calls(seed=1)
    for fact in ("at_s", "label", "seed", "latency_ms"):
        assert [getattr(call, fact) for call in calls()] != [getattr(call, fact) for call in other], fact


def test_another_rate_is_the_same_pattern_faster() -> None:
    slow, fast = calls(rate_per_s=1.0), calls(rate_per_s=4.0)
    assert [call.at_s for call in fast] == pytest.approx([call.at_s / 4 for call in slow])
    assert [(call.label, call.seed, call.latency_ms) for call in fast] == [
        (call.label, call.seed, call.latency_ms) for call in slow
    ]


def test_of_several_sizes_each_has_targets_of_its_own() -> None:
    planned = calls(count=400, targets_ms=(100.0,), sizes={"32x32": 0.5, "64x64": 1.5})
    assert {(call.size, call.latency_ms) for call in planned} == {("32x32", 50), ("64x64", 150)}
    assert 150 < sum(call.size == "64x64" for call in planned) < 250
    assert [(call.label, call.seed) for call in planned] == [(call.label, call.seed) for call in calls(count=400)]


def test_load_1_of_two_sizes_half_and_half_is_what_the_device_makes_of_both() -> None:
    both = Capacity.mixed([Capacity(solo_ms=100.0, rate_per_s=10.0), Capacity(solo_ms=300.0, rate_per_s=2.5)])
    assert both.solo_ms == 200
    assert both.rate_per_s == pytest.approx(2 / (0.1 + 0.4))


def test_no_targets_at_all() -> None:
    assert {call.latency_ms for call in calls(targets_ms=())} == {None}


def test_classes_and_seeds_never_end() -> None:
    assert len(list(islice(pictures(3, seed=0), 1000))) == 1000


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_that_is_none_is_named(rate: float) -> None:
    with pytest.raises(InvalidInput, match="rate"):
        calls(rate_per_s=rate)


@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_loads_and_scales_are_positive(value: float) -> None:
    capacity = Capacity(solo_ms=100.0, rate_per_s=5.0)
    with pytest.raises(InvalidInput, match="load"):
        capacity.rate_at(value)
    with pytest.raises(InvalidInput, match="slo-scale"):
        capacity.target_ms(value)


def test_burstiness_is_the_gamma_shape() -> None:
    assert burstiness_trace(4.0) == "gamma:cv=0.5"
    assert open_arrivals(burstiness_trace(0.25)) == open_arrivals("gamma:cv=2")
    with pytest.raises(InvalidInput, match="burstiness"):
        burstiness_trace(0)
