"""Plans whose steps are longer than those of their time grid, and what that is said to cost."""

from __future__ import annotations

import pytest

from elit_serve.errors import InvalidInput
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

CCFG = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.4, 1))


def test_longer_steps_leave_times_of_the_grid_out() -> None:
    plan = Plan(levels=(4, 4, 2), strides=(1, 3, 2), time_shift=2.0, guidance=CCFG)
    grid = time_grid(6, 2.0)
    assert (plan.num_steps, plan.grid_steps) == (3, 6)
    assert plan.times == (grid[0], grid[1], grid[4], grid[6])
    assert [kind.weak_level for kind in plan.step_kinds("")] == [None, None, 1]


def test_a_stride_throughout_is_an_even_grid_of_fewer_steps() -> None:
    for shift in (1.0, 2.0):
        coarse = Plan(levels=(4,) * 5, strides=(2,) * 5, time_shift=shift)
        assert coarse.times == pytest.approx(Plan(levels=(4,) * 5, time_shift=shift).times)


def test_strides_of_one_are_what_a_plan_has_that_says_nothing_of_them() -> None:
    assert Plan(levels=(4, 2), strides=(1, 1)) == Plan(levels=(4, 2))
    assert Plan(levels=(4, 2), strides=(1, 2)) != Plan(levels=(4, 2))


@pytest.mark.parametrize("strides", [(1,), (1, 0), (1, 2, 1), (500, 501)])
def test_strides_that_make_no_plan_are_refused(strides: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="strides"):
        Plan(levels=(4, 4), strides=strides)


LOSSES = {1: (0.0, 0.0, 0.02, 0.06), 4: (0.0, 0.0, 0.1, 0.3)}


def test_a_stride_throughout_loses_what_was_measured_whatever_is_lost_at_the_end() -> None:
    for share in (0.0, 0.4, 1.0):
        rule = Coarsening.of(time_grid(6, 1.5), LOSSES, {4: share})
        assert rule.lost((4,) * 6, (1,) * 6) == 0
        assert rule.lost((4,) * 3, (2,) * 3) == pytest.approx(0.1)
        assert rule.lost((1,) * 2, (3,) * 2) == pytest.approx(0.06)


def test_steps_given_up_early_cost_more_than_late_ones_but_for_the_last() -> None:
    rule = Coarsening.of(time_grid(8), LOSSES)
    assert rule.lost((4,) * 6, (2, 2, 1, 1, 1, 1)) == pytest.approx(0.875 * 0.1)  # W(0.5) = 1 - 0.5^3
    assert rule.lost((4,) * 6, (1, 1, 1, 1, 2, 2)) == pytest.approx(0.125 * 0.1)
    rule = Coarsening.of(time_grid(8), LOSSES, {1: 0.0, 4: 0.6})
    assert rule.lost((4,) * 6, (1, 1, 1, 1, 2, 2)) == pytest.approx((0.6 + 0.4 * 0.125) * 0.1)
    assert rule.lost((4,) * 5, (1, 1, 1, 1, 2)) < 0.4 * 0.125 * 0.1, "the last step is still to come"


def test_between_levels_a_loss_lies_between() -> None:
    rule = Coarsening.of(time_grid(8), LOSSES, {1: 0.0, 4: 0.5})
    assert rule.loss(2.5, 2) == pytest.approx((0.02 + 0.05) / 2)
    assert rule.end_loss(16, 3) == pytest.approx(0.15)
    assert rule.max_stride == 3


def test_strides_that_lose_too_much_can_be_left_out() -> None:
    rule = Coarsening.of(time_grid(8), LOSSES, {4: 0.5})
    shorter = rule.up_to(0.2)
    assert shorter is not None
    assert shorter.max_stride == 2
    assert rule.up_to(0.2) is shorter
    assert (rule.up_to(0.3), rule.up_to(0.05)) == (rule, None)
