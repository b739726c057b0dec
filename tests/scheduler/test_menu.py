"""Which plan a request gets that leaves its plan open."""

from __future__ import annotations

from elit_serve.scheduler import CostTable, MeasuredPlan, PlanMenu, QualityTable
from elit_serve.scheduler.menu import Crowd

ALONE = Crowd(in_flight=1, max_batch=8)


def plan(name: str, quality: float, *, steps: int = 10, level: int = 16, guided: int = 0, low: int = 1) -> MeasuredPlan:
    caps = (4,) * guided + (None,) * (steps - guided)
    return MeasuredPlan(name=name, weak_caps=caps, ceilings=(level,) * steps, quality=quality, min_level=low)


def menu(table: CostTable, *plans: MeasuredPlan) -> PlanMenu:
    """Half of the quality is lost from level 16 to 4."""
    return PlanMenu.of(QualityTable(levels={4: 0.5, 16: 1.0}, plans=plans), table)


def chosen(offered: PlanMenu, latency_ms: float, crowd: Crowd = ALONE) -> tuple[str, int]:
    option = offered.choose(latency_ms=latency_ms, crowd=crowd)
    return option.plan.name, option.level


def test_the_front_holds_what_nothing_beats_in_both_time_and_quality(table: CostTable) -> None:
    offered = menu(
        table,
        plan("guided", 1.0, guided=10),
        plan("half guided", 1.0, guided=5),
        plan("low", 0.7, level=4),
        plan("low and long", 0.75, level=4, steps=40),
    )
    assert [(option.plan.name, option.level) for option in offered.front] == [("low", 4), ("half guided", 16)]


def test_the_best_that_fits_with_a_cushion_is_chosen_or_else_the_fastest(table: CostTable) -> None:
    """At level 4 ten steps take 30 ms, at level 16 60, and with guidance 70; overhead and cushion take 10 and 14."""
    offered = menu(table, plan("low", 0.6, level=4), plan("plain", 0.8), plan("guided", 1.0, guided=10))
    assert chosen(offered, 1e9) == ("guided", 16)
    assert chosen(offered, 94) == ("guided", 16)
    assert chosen(offered, 93) == ("plain", 16)
    assert chosen(offered, 10) == ("low", 4)


def test_a_crowd_leaves_less_for_each_and_so_does_a_slow_device(table: CostTable) -> None:
    offered = menu(table, plan("low", 0.6, level=4), plan("guided", 1.0, guided=10))
    assert chosen(offered, 120, Crowd(in_flight=8, max_batch=8)) == ("low", 4)
    assert chosen(offered, 120, Crowd(in_flight=1, max_batch=8, correction=2.0)) == ("low", 4)
    few, many = (Crowd(in_flight=8, max_batch=size) for size in (8, 1))
    assert chosen(offered, 500, few) == ("guided", 16)
    assert chosen(offered, 500, many) == ("low", 4)


def test_a_plan_held_below_its_ceilings_may_be_the_best_that_fits(table: CostTable) -> None:
    """Level 8 loses a third of the way to level 4, and takes ten steps of 4 ms."""
    offered = menu(table, plan("plain", 0.9))
    assert chosen(offered, 10 + 12 + 40) == ("plain", 8)
    assert chosen(offered, 0) == ("plain", 4)


def test_autoguidance_is_not_held_at_its_weak_level(table: CostTable) -> None:
    offered = menu(table, plan("auto", 0.9, guided=10, low=8))
    assert {option.level for option in offered.front} == {8, 16}


def test_long_plans_can_be_left_out(table: CostTable) -> None:
    offered = menu(table, plan("short", 0.5, steps=4), plan("long", 1.0, steps=40))
    short = offered.within(10)
    assert short is not None
    assert chosen(short, 1e9)[0] == "short"
    assert offered.within(3) is None
