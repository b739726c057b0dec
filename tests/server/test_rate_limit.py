"""How often a key may ask, on a clock of the test's own."""

from __future__ import annotations

import pytest

from elit_serve.server.fairness import TokenBucket


def test_a_burst_is_taken_at_once_and_then_one_waits_for_each() -> None:
    bucket = TokenBucket(per_minute=60, burst=3, now_s=10)
    assert [bucket.wait_s(10) for _ in range(4)] == [0, 0, 0, 1]
    assert bucket.wait_s(10.25) == pytest.approx(0.75)
    assert bucket.wait_s(11) == 0
    assert bucket.wait_s(11) > 0


def test_a_refusal_costs_nothing_and_rest_saves_up_no_more_than_a_burst() -> None:
    bucket = TokenBucket(per_minute=60, burst=2, now_s=0)
    taken = [bucket.wait_s(0.01 * tick) == 0 for tick in range(1000)]
    assert sum(taken) == 2 + 9
    assert [bucket.wait_s(1000) == 0 for _ in range(3)] == [True, True, False]


def test_a_clock_that_jumps_back_gives_nothing_away() -> None:
    bucket = TokenBucket(per_minute=60, burst=1, now_s=100)
    assert bucket.wait_s(100) == 0
    assert bucket.wait_s(50) == pytest.approx(1)
    assert bucket.wait_s(51) == 0
