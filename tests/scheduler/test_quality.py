from __future__ import annotations

import pytest

from elit_serve.scheduler import CostTable, QualityTable
from elit_serve.scheduler.placeholder_quality import placeholder_quality
from elit_serve.scheduler.quality import MeasuredPlan, choose_plan, logarithmic, pareto_front


def plan(name: str, quality: float, *, steps: int = 10, level: int = 16, guided: int = 0) -> MeasuredPlan:
    caps = (4,) * guided + (None,) * (steps - guided)
    return MeasuredPlan(name=name, weak_caps=caps, ceilings=(level,) * steps, quality=quality)


def test_quality_is_linear_in_the_mean_level_between_measured_ones() -> None:
    table = QualityTable(levels={4: 0.5, 8: 0.8, 16: 1.0})
    assert [table.at(level) for level in (4, 6, 8, 12, 16)] == pytest.approx([0.5, 0.65, 0.8, 0.9, 1.0])
    assert (table.at(1), table.at(99)) == (0.5, 1.0)
    assert [table.slope(level) for level in (1, 4, 8, 9, 16, 99)] == pytest.approx([0.075, 0.075, 0.075, *[0.025] * 3])


def test_a_curve_that_is_not_concave_or_falls_is_not_taken() -> None:
    with pytest.raises(AssertionError, match="concave"):
        QualityTable(levels={4: 0.5, 8: 0.6, 16: 1.0})
    with pytest.raises(AssertionError, match="falls"):
        QualityTable(levels={4: 0.5, 8: 0.4})


def test_one_level_is_enough() -> None:
    assert placeholder_quality([16]).at(16) == 1
    assert placeholder_quality([16]).slope(16) == 0


def test_every_doubling_adds_the_same() -> None:
    assert logarithmic([2, 4, 8, 16], lowest=0.4) == pytest.approx({2: 0.4, 4: 0.6, 8: 0.8, 16: 1.0})


def test_the_front_holds_what_nothing_beats_in_both_time_and_quality(table: CostTable) -> None:
    menu = [
        plan("guided", 1.0, guided=10),
        plan("half guided", 1.0, guided=5),
        plan("plain", 0.8),
        plan("low", 0.7, level=4),
        plan("low and long", 0.75, level=4, steps=40),
    ]
    assert [chosen.name for chosen in pareto_front(menu, table)] == ["low", "plain", "half guided"]


def test_the_best_plan_that_fits_is_chosen_or_else_the_fastest(table: CostTable) -> None:
    """At level 4 ten steps take 40 ms with the overhead, at level 16 70, and with guidance 80."""
    menu = [plan("low", 0.6, level=4), plan("plain", 0.8), plan("guided", 1.0, guided=10)]
    assert choose_plan(menu, table, latency_ms=None).name == "guided"
    assert choose_plan(menu, table, latency_ms=80).name == "guided"
    assert choose_plan(menu, table, latency_ms=79).name == "plain"
    assert choose_plan(menu, table, latency_ms=79, crowding=1.5).name == "low"
    assert choose_plan(menu, table, latency_ms=10).name == "low"
