from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.scheduler.costs import AnswerCost

BATCHES = (1, 2, 4, 8)


def cost_ms(level: float, weak: float | None, batch: int) -> float:
    """A device on which a launch takes 10 ms, 2 more per latent of each image, and guided 1 + 2 per weak latent."""
    return 10 + batch * (2 * level + (1 + 2 * weak if weak else 0))


def linear_table(*, pads_batches: bool = False) -> CostTable:
    points = [(level, weak) for level in (1, 4, 8, 16) for weak in (None, *sorted({1, level}))]
    costs = {
        (StepKind("32x32", level, weak), batch): cost_ms(level, weak, batch)
        for level, weak in points
        for batch in BATCHES
    }
    return CostTable(steps_ms=costs, overhead_ms=5.0, pads_batches=pads_batches)


def test_a_measured_point_is_returned_as_measured() -> None:
    assert linear_table().step_ms(StepKind.capped("32x32", 8, None), 1) == 26
    assert linear_table().step_ms(StepKind.capped("32x32", 8, 1), 1) == 29
    assert linear_table().step_ms(StepKind.capped("32x32", 8, 8), 4) == 10 + 4 * 33


@given(level=st.integers(1, 16), weak=st.integers(1, 16), batch=st.integers(1, 8))
def test_interpolation_is_exact_where_the_cost_is_linear(level: int, weak: int, batch: int) -> None:
    weak = min(weak, level)
    assert linear_table().step_ms(StepKind.capped("32x32", level, weak), batch) == pytest.approx(
        cost_ms(level, weak, batch)
    )
    assert linear_table().step_ms(StepKind.capped("32x32", level, None), batch) == pytest.approx(
        cost_ms(level, None, batch)
    )


def test_a_weak_cap_above_the_level_counts_as_the_level() -> None:
    assert linear_table().step_ms(StepKind.capped("32x32", 4, 9), 2) == linear_table().step_ms(
        StepKind.capped("32x32", 4, 4), 2
    )


def test_a_padded_batch_costs_as_much_as_the_next_measured_one() -> None:
    table = linear_table(pads_batches=True)
    assert table.step_ms(StepKind.capped("32x32", 8, None), 3) == table.step_ms(StepKind.capped("32x32", 8, None), 4)
    assert table.step_ms(StepKind.capped("32x32", 8, None), 5) == table.step_ms(StepKind.capped("32x32", 8, None), 8)
    assert table.step_ms(StepKind.capped("32x32", 8, None), 2) < table.step_ms(StepKind.capped("32x32", 8, None), 3)


def test_a_row_goes_from_an_empty_batch_to_the_largest_measured_one() -> None:
    row = linear_table().row(StepKind("32x32", 4))
    assert row[0] == 0
    assert len(row) == 1 + linear_table().max_batch
    assert row[3] == linear_table().step_ms(StepKind.capped("32x32", 4, None), 3)


def test_outside_the_measured_levels_the_nearest_measurement_counts() -> None:
    costs = {
        (StepKind("32x32", 2, None), 1): 3.0,
        (StepKind("32x32", 4, None), 1): 5.0,
        (StepKind("32x32", 2, 2), 1): 4.0,
        (StepKind("32x32", 4, 2), 1): 6.0,
    }
    table = CostTable(steps_ms=costs, overhead_ms=0.0)
    assert table.step_ms(StepKind.capped("32x32", 1, None), 1) == 3
    assert table.step_ms(StepKind.capped("32x32", 9, None), 1) == 5
    assert table.step_ms(StepKind.capped("32x32", 4, 1), 1) == 6
    assert table.step_ms(StepKind.capped("32x32", 4, 4), 1) == 6


def test_a_scaled_table_scales_steps_and_keeps_the_overhead_and_the_padding() -> None:
    table = linear_table(pads_batches=True).scaled(1.1)
    assert table.step_ms(StepKind.capped("32x32", 8, 1), 3) == pytest.approx(1.1 * cost_ms(8, 1, 4))
    assert table.overhead_ms == 5


def test_the_least_of_several_kinds_is_the_fastest_at_each_level_and_batch() -> None:
    """At level 8 of the second shape two pictures are fast, and one is not."""
    steps_ms = {
        (StepKind(shape, level, weak), batch): cost
        for shape, costs in (("32x32", (3.0, 4.0, 8.0, 9.0)), ("64x64", (5.0, 6.0, 9.0, 7.0)))
        for (level, batch), cost in zip([(4, 1), (4, 2), (8, 1), (8, 2)], costs, strict=True)
        for weak in (None, 1)
    }
    steps_ms[StepKind("32x32", 4, 1), 1] = 2.5
    answers_ms = {("32x32", 1): AnswerCost(2.0, 1.0), ("64x64", 1): AnswerCost(1.0, 1.0)}
    table = CostTable(steps_ms=steps_ms, overhead_ms=5.0, answers_ms=answers_ms)
    least = table.least_of(("32x32", "64x64"), (1, None))
    assert least.shapes == ("32x32",)
    assert [least.row(StepKind("32x32", level)) for level in (4, 8)] == [(0, 2.5, 4), (0, 8, 8)]
    assert least.after_ms("32x32") == 7
    guided = table.least_of(("32x32",), (1,))
    assert [guided.row(StepKind("32x32", level)) for level in (4, 8)] == [(0, 2.5, 4), (0, 8, 9)]
    assert guided.after_ms("32x32") == 8


def test_unguided_steps_ride_in_guided_launches_where_launches_cost_most() -> None:
    """Two launches of four take 2 x 10 + 4 x (32 + 35), one of eight 10 + 8 x 35: the second launch's 10 are less than
    what the weak pass costs four images more; with launches of 100 ms they are not."""
    mixed = (None, 1, 1)
    assert linear_table().riding("32x32", mixed) == mixed
    slow = {key: cost + 90 for key, cost in linear_table().steps_ms.items()}
    dear = CostTable(steps_ms=slow, overhead_ms=5.0)
    assert dear.riding("32x32", mixed) == (1, 1, 1)
    assert dear.riding("32x32", (None, None)) == (None, None)
    assert dear.riding("32x32", (1, 1)) == (1, 1)


@pytest.mark.parametrize("pads_batches", [False, True])
def test_more_pictures_never_cost_less_whatever_was_measured(pads_batches: bool) -> None:
    """Small steps are measured with noise; a plan for eight must still hold when only five of them are left."""
    measured = {1: 3.0, 2: 2.5, 4: 6.0, 8: 5.0}
    steps_ms = {(StepKind("32x32", 4, weak), batch): cost for weak in (None, 4) for batch, cost in measured.items()}
    table = CostTable(steps_ms=steps_ms, overhead_ms=0.0, pads_batches=pads_batches)
    row = table.row(StepKind("32x32", 4))
    assert list(row) == sorted(row)
    assert (table.step_ms(StepKind.capped("32x32", 4, None), 2), table.step_ms(StepKind.capped("32x32", 4, 4), 8)) == (
        3.0,
        6.0,
    )
