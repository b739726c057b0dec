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


COARSENING = Coarsening(early=2.0, losses={1: (0.0, 0.0, 0.02, 0.06), 4: (0.0, 0.0, 0.1, 0.3)})


def test_a_stride_throughout_loses_what_was_measured_whatever_the_weights() -> None:
    times = time_grid(6)
    for early in (1.0, 2.0, 5.5):
        rule = Coarsening(early=early, losses=COARSENING.losses)
        assert rule.lost(times, (4,) * 6, (1,) * 6) == 0
        assert rule.lost(times, (4,) * 3, (2,) * 3) == pytest.approx(0.1)
        assert rule.lost(times, (1,) * 2, (3,) * 2) == pytest.approx(0.06)


def test_steps_given_up_early_cost_more_than_late_ones() -> None:
    times = time_grid(8)
    early = COARSENING.lost(times, (4,) * 6, (2, 2, 1, 1, 1, 1))
    late = COARSENING.lost(times, (4,) * 6, (1, 1, 1, 1, 2, 2))
    assert early == pytest.approx(0.75 * 0.1)  # W(0.5) = 1 - 0.5^2
    assert late == pytest.approx(0.25 * 0.1)


def test_between_levels_a_loss_lies_between() -> None:
    assert COARSENING.loss(2.5, 2) == pytest.approx(0.06)
    assert COARSENING.loss(16, 3) == 0.3
    assert COARSENING.max_stride == 3
