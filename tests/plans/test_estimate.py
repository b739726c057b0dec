"""Values with their intervals: means of several, and what may be said of two."""

from __future__ import annotations

import math

import pytest

from elit_serve.plans.estimate import Estimate

NEAR, FAR = Estimate(value=1.0, half_width=0.3), Estimate(value=2.0, half_width=0.4)
UNKNOWN = Estimate(value=1.5, half_width=math.inf)


def test_the_mean_of_independent_estimates_is_surer_than_each_and_goes_by_their_weights() -> None:
    assert Estimate.mean([NEAR, FAR]) == Estimate(value=1.5, half_width=pytest.approx(0.25))
    weighted = Estimate.mean([NEAR, FAR], weights=[3, 1])
    assert weighted == Estimate(value=1.25, half_width=pytest.approx(math.hypot(0.9, 0.4) / 4))
    assert Estimate.mean([NEAR, NEAR, NEAR, NEAR]).half_width == pytest.approx(NEAR.half_width / 2)


def test_intervals_that_overlap_may_still_differ_surely() -> None:
    close = Estimate(value=1.6, half_width=0.4)
    assert not NEAR.overlaps(FAR)
    assert NEAR.overlaps(close)
    assert close.overlaps(NEAR)
    assert close.is_surely_above(NEAR)  # 0.6 above, and the difference is uncertain by 0.5
    assert not NEAR.is_surely_above(close)


def test_nothing_is_sure_of_what_was_measured_once() -> None:
    assert not UNKNOWN.has_interval
    assert UNKNOWN.overlaps(FAR)
    assert not FAR.is_surely_above(UNKNOWN)


def test_an_estimate_tells_its_uncertainty_where_it_has_one() -> None:
    assert FAR.text(2) == "2.00 ± 0.40"
    assert UNKNOWN.text() == "1.5"
    assert (NEAR.low, NEAR.high) == (0.7, 1.3)
