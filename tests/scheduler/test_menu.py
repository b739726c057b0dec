"""Which plan a request gets that leaves its plan open."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.grid import time_grid
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, MeasuredPlan, PlanMenu, QualityTable
from elit_serve.scheduler.menu import Crowd

ALONE = Crowd(in_flight=1, max_batch=8)


def plan(name: str, quality: float, *, steps: int = 10, level: int = 16, guided: int = 0, low: int = 1) -> MeasuredPlan:
    caps = (4,) * guided + (None,) * (steps - guided)
    return MeasuredPlan(name=name, weak_caps=caps, ceilings=(level,) * steps, quality=quality, min_level=low)


def menu(table: CostTable, *plans: MeasuredPlan) -> PlanMenu:
    """Half of the quality is lost from level 16 to 4."""
    return PlanMenu.of(QualityTable(levels={4: 0.5, 16: 1.0}, plans=plans), table, "32x32")


def chosen(offered: PlanMenu, latency_ms: float, crowd: Crowd = ALONE) -> tuple[str, int]:
    option = offered.choose(latency_ms=latency_ms, crowd=crowd)
    return option.plan.name, option.level


def test_the_best_that_fits_with_a_margin_is_chosen_or_else_the_fastest(table: CostTable) -> None:
    """At level 4 ten steps take 30 ms, at level 16 60, and with guidance 70; overhead and margin 10 and 6.6."""
    offered = menu(table, plan("low", 0.6, level=4), plan("plain", 0.8), plan("guided", 1.0, guided=10))
    assert chosen(offered, 1e9) == ("guided", 16)
    assert chosen(offered, 87) == ("guided", 16)
    assert chosen(offered, 86) == ("plain", 16)
    assert chosen(offered, 81, replace(ALONE, deviation=0.0)) == ("guided", 16), "nothing is kept to spare"
    assert chosen(offered, 10) == ("low", 4)


def test_a_crowd_leaves_less_for_each_and_so_does_a_slow_device(table: CostTable) -> None:
    offered = menu(table, plan("low", 0.6, level=4), plan("guided", 1.0, guided=10))
    assert chosen(offered, 120, Crowd(in_flight=8, max_batch=8)) == ("low", 4)
    assert chosen(offered, 120, Crowd(in_flight=1, max_batch=8, correction=2.0)) == ("low", 4)
    few, many = (Crowd(in_flight=8, max_batch=size) for size in (8, 1))
    assert chosen(offered, 500, few) == ("guided", 16)
    assert chosen(offered, 500, many) == ("guided", 8)


def test_a_plan_whose_steps_may_become_longer_is_taken_however_crowded_it_is(table: CostTable) -> None:
    """What others need it gives back in flight; what is told of it is its best form that fits in this crowd."""
    flexible = replace(plan("long", 0.9, steps=20), coarsening=Coarsening.of(time_grid(20), {4: (0.0, 0.0, 0.1)}))
    offered = menu(table, plan("low", 0.6, level=4), plan("short", 0.8), flexible)
    assert chosen(offered, 1e9) == ("long", 16)
    alone = offered.choose(latency_ms=1e9, crowd=ALONE)
    assert alone.quality == 0.9
    half = offered.choose(latency_ms=100, crowd=ALONE)
    assert (half.plan.name, half.quality) == ("long", pytest.approx(0.9 * 0.9)), "twenty steps take 120 ms, ten 60"
    busy = Crowd(in_flight=8, max_batch=8, images_per_s=1000.0, target_ms=120.0)
    assert chosen(offered, 120, busy)[0] == "long"
    assert offered.choose(latency_ms=120, crowd=busy).quality < half.quality
    assert chosen(offered, 10) == ("low", 4), "what cannot be in time even so is as before"


def test_a_plan_whose_steps_may_become_longer_must_leave_time_for_all_pictures_of_a_request(table: CostTable) -> None:
    """What its other pictures need, none of them can give back."""
    flexible = replace(plan("long", 0.9, steps=20), coarsening=Coarsening.of(time_grid(20), {4: (0.0, 0.0, 0.1)}))
    offered = menu(table, plan("low", 0.6, steps=5, level=4), flexible)
    busy = Crowd(in_flight=8, max_batch=8)
    assert chosen(offered, 90, busy)[0] == "long"
    assert chosen(offered, 90, replace(busy, newcomers=8)) == ("low", 4)
    assert chosen(offered, 300, replace(busy, newcomers=8))[0] == "long"


def test_a_plan_held_below_its_ceilings_may_be_the_best_that_fits(table: CostTable) -> None:
    """Level 8 loses a third of the way to level 4, and takes ten steps of 4 ms."""
    offered = menu(table, plan("plain", 0.9))
    assert chosen(offered, 10 + 12 + 40) == ("plain", 8)
    assert chosen(offered, 0) == ("plain", 4)


def test_autoguidance_is_not_held_at_its_weak_level(table: CostTable) -> None:
    offered = menu(table, plan("auto", 0.9, guided=10, low=8))
    assert {option.level for option in offered.options} == {8, 16}


def test_the_more_arrive_the_cheaper_a_plan_all_get_though_each_alone_had_time_for_more(table: CostTable) -> None:
    """In 500 ms eight can be made together at level 16 with guidance: 19 a second; at level 4 without it 80."""
    offered = menu(table, plan("low", 0.6, level=4), plan("guided", 1.0, guided=10))

    def chosen_when(images_per_s: float) -> str:
        return chosen(offered, 500, Crowd(in_flight=1, max_batch=8, images_per_s=images_per_s))[0]

    assert chosen_when(5) == "guided"
    assert chosen_when(25) == "low"


def test_guided_and_unguided_steps_of_a_plan_crowd_each_other(table: CostTable) -> None:
    """Four alike in flight, each half of the time guided: two launches of two a step, 6 and 8 ms, where one of four
    guided takes 10. Alone a picture waits for nobody."""
    offered = menu(table, plan("half", 0.6, level=4, guided=5), plan("guided", 0.6, level=4, guided=10))
    half, guided = (option.duration for option in offered.options)
    assert half.steps_ms(ALONE) == 5 * 3 + 5 * 4
    assert half.steps_ms(Crowd(in_flight=4, max_batch=8)) == 10 * (4 + 6)
    assert guided.steps_ms(Crowd(in_flight=4, max_batch=8)) == 10 * 10


def test_a_plan_of_one_level_is_not_held_to_it_and_a_schedule_is() -> None:
    assert plan("constant", 0.6).limits is None
    rising = MeasuredPlan(name="rising", weak_caps=(None,) * 2, ceilings=(4, 16), quality=0.6)
    assert rising.limits == (4, 16)


def test_a_plan_of_one_level_rises_only_as_far_as_pictures_become_better() -> None:
    """A guidance that suits few latents spoils pictures of many."""
    low = MeasuredPlan(
        name="low", weak_caps=(1,) * 3, ceilings=(4,) * 3, quality=0.5, levels={1: 0.3, 4: 0.5, 8: 0.7, 16: 0.6}
    )
    assert low.limits == (8, 8, 8)
    assert replace(low, levels={1: 0.3, 4: 0.5, 8: 0.4, 16: 0.45}).limits == (4, 4, 4)
    assert replace(low, levels={1: 0.6, 4: 0.5, 8: 0.55, 16: 0.58}).limits is None


def test_long_plans_can_be_left_out(table: CostTable) -> None:
    offered = menu(table, plan("short", 0.5, steps=4), plan("long", 1.0, steps=40))
    short = offered.within(10)
    assert short is not None
    assert chosen(short, 1e9)[0] == "short"
    assert offered.within(3) is None


@st.composite
def menus(draw: st.DrawFn) -> PlanMenu:
    """Plans of any quality at costs that bend anywhere: a large batch may be slower a picture than a small one."""
    factors = st.floats(0.3, 3.0)
    steps_ms: dict[tuple[StepKind, int], float] = {}
    for level in (4, 8, 16):
        for batch in (1, 2, 4, 8):
            steps_ms[StepKind("32x32", level), batch] = (1 + batch) * level**0.5 * draw(factors)
            for weak in {4, level}:
                steps_ms[StepKind("32x32", level, weak), batch] = steps_ms[StepKind("32x32", level), batch] * (
                    1 + draw(factors)
                )
    plans = [
        plan(
            str(index),
            draw(st.floats(0.1, 1.0)),
            steps=(steps := draw(st.sampled_from([4, 10, 20]))),
            level=draw(st.sampled_from([4, 8, 16])),
            guided=draw(st.integers(0, steps)),
        )
        for index in range(draw(st.integers(1, 5)))
    ]
    return menu(CostTable(steps_ms=steps_ms, overhead_ms=draw(st.floats(0, 20))), *plans)


@st.composite
def crowds(draw: st.DrawFn) -> Crowd:
    newcomers = draw(st.integers(1, 20))
    return Crowd(
        in_flight=newcomers + draw(st.integers(0, 19)),
        newcomers=newcomers,
        max_batch=draw(st.sampled_from([1, 3, 8])),
        correction=draw(st.sampled_from([0.8, 1.0, 2.5])),
        images_per_s=draw(st.sampled_from([0.0, 0.5, 3.0, 20.0, 200.0])),
        target_ms=draw(st.sampled_from([50.0, 1000.0, 20000.0])),
    )


@settings(max_examples=300, deadline=None)
@given(offered=menus(), crowd=crowds())
def test_who_waits_longer_never_gets_less_and_nobody_gets_what_is_beaten(offered: PlanMenu, crowd: Crowd) -> None:
    best = -1.0
    for latency_ms in (10, 50, 100, 200, 500, 1000, 2000, 5000, 20000, 60000):
        option = offered.choose(latency_ms=latency_ms, crowd=crowd)
        assert option.quality >= best, f"{latency_ms} ms get {option.quality}, and less time got {best}"
        best = option.quality
        needed_ms = option.duration.needed_ms(crowd)
        for other in offered.options:
            is_faster = other.duration.needed_ms(crowd) < needed_ms
            assert not (is_faster and other.quality >= option.quality), "it is faster and as good"


def test_what_must_be_good_runs_no_lower_than_it_is_good(table: CostTable) -> None:
    """At level 8 two thirds of what lies between the levels 4 and 16 are lost."""
    offered = menu(table, plan("low", 0.6, level=4), plan("plain", 0.9))
    good = offered.at_least(0.6)
    assert good is not None
    assert [(option.plan.name, option.level) for option in good.options] == [("low", 4), ("plain", 8), ("plain", 16)]
    assert [option.plan.min_level for option in good.options] == [4, 8, 8]
    assert chosen(good, 0) == ("low", 4)
    assert offered.at_least(0.95) is None


def test_a_schedule_must_be_good_from_its_lowest_level_on(table: CostTable) -> None:
    rising = MeasuredPlan(name="rising", weak_caps=(None,) * 4, ceilings=(4, 4, 16, 16), quality=0.8)
    assert menu(table, rising).at_least(0.7) is None
    good = menu(table, rising).at_least(0.5)
    assert good is not None
    assert good.options[0].plan.min_level == 4
