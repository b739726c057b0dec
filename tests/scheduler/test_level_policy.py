from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.errors import Infeasible
from elit_serve.scheduler import highest_level_within


def cost_ms(level: int) -> float:
    return 100.3 + 10 * level


def test_the_highest_level_that_fits_is_chosen() -> None:
    assert highest_level_within(145, [1, 2, 4, 8], cost_ms) == 4


def test_a_level_that_fits_exactly_is_taken() -> None:
    assert highest_level_within(cost_ms(8), [1, 2, 4, 8], cost_ms) == 8


def test_a_target_below_the_lowest_level_is_infeasible_and_says_what_would_do() -> None:
    with pytest.raises(Infeasible) as refusal:
        highest_level_within(50, [2, 4], cost_ms)
    assert refusal.value.field == "latency_ms"
    assert refusal.value.value == 50
    assert refusal.value.min_latency_ms == 121


@given(st.floats(1, 10_000), st.sets(st.integers(1, 64), min_size=1))
def test_the_choice_fits_nothing_higher_does_and_the_offered_minimum_works(latency_ms: float, levels: set[int]) -> None:
    candidates = sorted(levels)
    if latency_ms < cost_ms(candidates[0]):
        with pytest.raises(Infeasible) as refusal:
            highest_level_within(latency_ms, candidates, cost_ms)
        assert highest_level_within(refusal.value.min_latency_ms, candidates, cost_ms) in levels
        return
    chosen = highest_level_within(latency_ms, candidates, cost_ms)
    assert cost_ms(chosen) <= latency_ms
    assert all(cost_ms(level) > latency_ms for level in candidates if level > chosen)
