from __future__ import annotations

import pytest

from elit_serve.plans.coarsening import Coarsening
from elit_serve.scheduler import MeasuredPlan, QualityTable
from elit_serve.scheduler.quality import logarithmic, placeholder_quality


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


def test_late_steps_count_more_where_that_was_measured() -> None:
    alike, weighty = (QualityTable(levels={4: 0.5, 16: 1.0}, late=late) for late in (1.0, 2.0))
    assert alike.of_steps([4, 16]) == alike.of_steps([16, 4]) == pytest.approx(0.75)
    assert weighty.of_steps([4, 16]) == pytest.approx(0.25 * 0.5 + 0.75 * 1.0)
    assert weighty.of_steps([16, 4]) == pytest.approx(0.25 * 1.0 + 0.75 * 0.5)
    assert weighty.of_steps([16] * 7) == 1.0
    plan = MeasuredPlan(name="usual", weak_caps=(None,) * 4, ceilings=(16,) * 4, quality=0.9, levels={4: 0.5, 16: 0.9})
    assert weighty.of_plan(plan, [4, 4, 4, 16]) == pytest.approx(0.9 - 0.4 * 9 / 16)


def test_a_long_step_counts_for_all_that_it_covers() -> None:
    weighty = QualityTable(levels={4: 0.5, 16: 1.0}, late=2.0)
    freely = Coarsening.of([0, 0.25, 0.5, 0.75, 1], {4: (0.0, 0.0, 0.0), 16: (0.0, 0.0, 0.0)})
    assert weighty.of_steps([4, 16], [2, 2], freely) == weighty.of_steps([4, 4, 16, 16])
    assert weighty.of_steps([4, 16, 16], [2, 1, 1], freely) == pytest.approx(weighty.of_steps([4, 4, 16, 16]))


def test_a_plan_loses_the_share_that_the_default_plan_loses_between_the_same_levels() -> None:
    table = QualityTable(levels={4: 0.5, 8: 0.8, 16: 1.0})
    plan = MeasuredPlan(name="rising", weak_caps=(None,) * 4, ceilings=(4, 4, 12, 12), quality=0.6)
    assert table.of_plan(plan, (8,) * 4) == pytest.approx(0.6)
    assert table.of_plan(plan, (4,) * 4) == pytest.approx(0.6 * 0.5 / 0.8)
    assert table.moved(0.95, 4, 16) == 1.0
