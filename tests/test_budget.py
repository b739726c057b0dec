"""Fractions to levels and back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.errors import InvalidInput
from elit_serve.plans.levels import TOLD_LATENTS, Budgets, budget_of_level, check_level, level_of_budget, spans

level_sets = st.sets(st.integers(1, 64), min_size=1, max_size=16).map(sorted)


@pytest.mark.parametrize(
    ("budget", "level"), [(1.0, 16), (0.5, 8), (0.25, 4), (1 / 16, 1), (0.001, 1), (0.34, 5), (1, 16), (1.5 / 16, 2)]
)
def test_a_budget_is_rounded_to_the_nearest_of_sixteen_levels(budget: float, level: int) -> None:
    assert level_of_budget(budget, range(1, 17), 16) == level


@pytest.mark.parametrize(("budget", "level"), [(0.5, 8), (0.4, 8), (0.3, 4), (0.375, 8), (0.01, 1), (0.8, 16)])
def test_only_trained_levels_are_chosen_and_a_tie_goes_to_the_higher(budget: float, level: int) -> None:
    assert level_of_budget(budget, [1, 4, 8, 16], 16) == level


@pytest.mark.parametrize("budget", [0, -0.5, 1.0001, 4, math.nan, math.inf, "0.5", None])
def test_what_is_no_fraction_is_refused_with_the_field_and_the_value(budget: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        level_of_budget(budget, range(1, 17), 16, field="min_budget")  # type: ignore[arg-type]
    assert caught.value.field == "min_budget"
    assert caught.value.value is budget


def test_a_budget_is_a_share_of_all_latents_even_where_training_stopped_below_them() -> None:
    assert level_of_budget(0.5, range(1, 9), 16) == 8
    assert level_of_budget(1.0, range(1, 9), 16) == 8


@given(level_sets, st.floats(0.001, 1))
def test_a_bound_is_kept_by_whatever_is_chosen_within_it(levels: list[int], bound: float) -> None:
    budgets = Budgets(levels=tuple(levels), latents_per_group=64)
    within = [level for level in levels if level >= 64 * bound - TOLD_LATENTS]
    assert budgets.level_from(bound) == (within or levels[-1:])[0]
    fitting = [level for level in levels if level <= 64 * bound + TOLD_LATENTS]
    if fitting:
        assert budgets.level_up_to(bound, field="max_budget") == fitting[-1]
    else:
        with pytest.raises(InvalidInput, match=f"max_budget: .* at least {levels[0] / 64:g}"):
            budgets.level_up_to(bound, field="max_budget")


@given(level_sets)
def test_a_bound_may_be_a_budget_as_it_was_told(levels: list[int]) -> None:
    budgets = Budgets(levels=tuple(levels), latents_per_group=64)
    for level in levels:
        told = round(budgets.of_level(level), 4)
        assert budgets.level_from(told) == budgets.level_up_to(told, field="max_budget") == level


@given(level_sets)
def test_every_level_survives_the_way_to_a_budget_and_back(levels: list[int]) -> None:
    for level in levels:
        assert level_of_budget(budget_of_level(level, 64), levels, 64) == level


@given(level_sets, st.floats(1e-6, 1), st.floats(1e-6, 1))
def test_more_budget_never_means_a_lower_level(levels: list[int], first: float, second: float) -> None:
    low, high = sorted((first, second))
    assert level_of_budget(low, levels, 64) <= level_of_budget(high, levels, 64)


def test_an_untrained_level_is_refused_with_the_trained_ones() -> None:
    assert check_level(8, [1, 2, 4, 8]) == 8
    with pytest.raises(InvalidInput, match=r"levels: 3 is not allowed; this model was trained at levels 1-2, 4, 8"):
        check_level(3, [1, 2, 4, 8])


@pytest.mark.parametrize(("values", "text"), [([], ""), ([5], "5"), ([3, 1, 2], "1-3"), ([1, 3, 4, 9], "1, 3-4, 9")])
def test_spans_shorten_runs(values: list[int], text: str) -> None:
    assert spans(values) == text


def test_a_models_budgets_go_to_trained_levels_and_levels_back_to_budgets() -> None:
    budgets = Budgets(levels=(1, 4, 8), latents_per_group=16)
    assert (budgets.level_of(0.25), budgets.level_of(1.0), budgets.full_level) == (4, 8, 8)
    assert (budgets.of_level(4), budgets.of_level(2.5)) == (0.25, 2.5 / 16)
    assert budgets.check(8) == 8
    with pytest.raises(InvalidInput, match="trained at levels 1, 4, 8"):
        budgets.check(16)
    with pytest.raises(InvalidInput, match="weak_budget"):
        budgets.level_of(0, field="weak_budget")
