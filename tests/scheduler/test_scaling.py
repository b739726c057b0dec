"""How many replicas a fleet should have."""

from __future__ import annotations

import pytest

from elit_serve.scheduler import CostTable
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.routing.scaling import Reading, Scaling, full_s, replicas_wanted

SCALING = Scaling(min_replicas=1, max_replicas=8, load_s=40.0)


def readings(
    *, offered: float, granted: float | None = 1.0, refused: float = 0.0, count: int = 20, from_s: float = 0.0
) -> list[Reading]:
    """One every five seconds."""
    return [
        Reading(at_s=from_s + 5.0 * place, offered=offered, granted=granted, refused=refused) for place in range(count)
    ]


def test_a_fleet_that_grants_enough_stays_as_it_is() -> None:
    assert replicas_wanted(readings(offered=2.8), SCALING, ready=4, loading=0) == 4
    assert replicas_wanted(readings(offered=4.0), SCALING, ready=4, loading=0) == 4


def test_low_budgets_bring_as_many_as_the_load_needs_at_full_budget() -> None:
    assert replicas_wanted(readings(offered=4.0, granted=0.6), SCALING, ready=3, loading=0) == 6


def test_low_budgets_bring_one_more_even_if_the_load_seems_to_fit() -> None:
    assert replicas_wanted(readings(offered=1.0, granted=0.6), SCALING, ready=3, loading=0) == 4


def test_refusals_do_so_too() -> None:
    assert replicas_wanted(readings(offered=4.0, refused=0.05), SCALING, ready=3, loading=0) == 6


def test_no_more_are_added_while_those_that_are_needed_load() -> None:
    assert replicas_wanted(readings(offered=4.0, granted=0.6), SCALING, ready=3, loading=3) == 6
    assert replicas_wanted(readings(offered=4.8, granted=0.6), SCALING, ready=3, loading=3) == 7


def test_a_moment_of_low_budgets_counts_as_much_as_it_lasted() -> None:
    calm, moment = readings(offered=2.0, count=19), readings(offered=4.0, granted=0.7, count=1, from_s=95.0)
    assert replicas_wanted([*calm, *moment], SCALING, ready=3, loading=0) == 3


def test_a_fleet_shrinks_once_fewer_have_sufficed_for_long_enough() -> None:
    assert replicas_wanted(readings(offered=1.3, count=10), SCALING, ready=4, loading=0) == 4
    assert replicas_wanted(readings(offered=1.3, count=20), SCALING, ready=4, loading=0) == 2


def test_a_peak_within_that_time_keeps_the_replicas_that_it_needed() -> None:
    peak, calm = readings(offered=2.0, count=6), readings(offered=1.0, count=14, from_s=30.0)
    assert replicas_wanted([*peak, *calm], SCALING, ready=4, loading=0) == 3


def test_a_fleet_without_arrivals_shrinks_to_the_least_and_an_unread_one_has_at_least_that() -> None:
    assert replicas_wanted(readings(offered=0.0, granted=None), SCALING, ready=4, loading=0) == 1
    assert replicas_wanted([], Scaling(min_replicas=2, max_replicas=4, load_s=1.0), ready=1, loading=0) == 2


def test_there_are_never_more_than_the_most() -> None:
    assert replicas_wanted(readings(offered=50.0, granted=0.1), SCALING, ready=8, loading=0) == 8


def test_what_a_picture_offers_is_its_share_of_the_largest_batch_at_full_budget(table: CostTable) -> None:
    picture = Demand(
        request_id=1,
        shape="32x32",
        arrived_s=0.0,
        deadline_s=1.0,
        weak_caps=(4,) * 10,
        min_level=4,
        max_level=16,
    )
    assert full_s(picture, CorrectedCosts(table)) == pytest.approx(10 * (2 + 8 * (16 + 4) / 4) / 8 / 1000)
