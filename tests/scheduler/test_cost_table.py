from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.scheduler import CostTable


def linear_table() -> CostTable:
    """A device on which a step takes 10 + 2 ms per latent, and a guided one 1 ms more."""
    points = [(level, weak) for level in (1, 4, 8, 16) for weak in (None, *sorted({1, level}))]
    costs = {(level, weak): 10.0 + 2 * level + (1 + 2 * weak if weak else 0) for level, weak in points}
    return CostTable(step_costs_ms=costs, overhead_ms=5.0)


def test_a_measured_point_is_returned_as_measured() -> None:
    assert linear_table().step_ms(8, None) == 26
    assert linear_table().step_ms(8, 1) == 29
    assert linear_table().step_ms(8, 8) == 43


@given(level=st.integers(1, 16), weak=st.integers(1, 16))
def test_interpolation_is_exact_where_the_cost_is_linear(level: int, weak: int) -> None:
    weak = min(weak, level)
    assert linear_table().step_ms(level, weak) == pytest.approx(10 + 2 * level + 1 + 2 * weak)
    assert linear_table().step_ms(level, None) == pytest.approx(10 + 2 * level)


def test_a_weak_level_above_the_level_counts_as_the_level() -> None:
    assert linear_table().step_ms(4, 9) == linear_table().step_ms(4, 4)


def test_outside_the_measured_range_the_nearest_measurement_counts() -> None:
    table = CostTable(step_costs_ms={(2, None): 3.0, (4, None): 5.0, (2, 2): 4.0, (4, 2): 6.0}, overhead_ms=0.0)
    assert table.step_ms(1, None) == 3
    assert table.step_ms(9, None) == 5
    assert table.step_ms(4, 1) == 6
    assert table.step_ms(4, 4) == 6


def test_a_plan_costs_the_overhead_and_each_of_its_steps() -> None:
    cost_ms = linear_table().predict_ms([16, 16, 4], [1, None, 4])
    assert cost_ms == pytest.approx(5 + 45 + 42 + 27)
