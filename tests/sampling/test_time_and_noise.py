"""Where the solver stops, and where it starts."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st

from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import MAX_SHIFT_GROWTH, MAX_STEPS
from elit_serve.plans.grid import TimeShift, time_grid
from elit_serve.sampling import expand_like, initial_noise

shifts = st.floats(0.05, 20)


def test_without_shift_the_grid_is_uniform() -> None:
    assert time_grid(4) == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("shift", [0.0, -1.0, 1e-320, 1e300, float("nan"), float("inf")])
def test_a_shift_that_would_divide_by_zero_or_overflow_is_refused(shift: float) -> None:
    with pytest.raises(InvalidInput, match=r"time_shift: .+ is not allowed; a shift lies in 0\.01 to 100"):
        time_grid(4, shift)


def test_a_shift_of_two_follows_its_formula() -> None:
    # u' = s u / (1 + (s - 1) u): u = 3/4 becomes 6/7, 1/2 becomes 2/3, 1/4 becomes 2/5
    assert time_grid(4, 2.0) == pytest.approx([0, 1 / 7, 1 / 3, 3 / 5, 1])


@given(st.integers(1, 200), shifts)
def test_every_grid_rises_from_noise_to_data(num_steps: int, shift: float) -> None:
    grid = time_grid(num_steps, shift)
    assert len(grid) == num_steps + 1
    assert (grid[0], grid[-1]) == (0, 1)
    assert all(t < t_next for t, t_next in pairwise(grid))


@given(st.integers(2, 100), shifts)
def test_a_shift_and_its_inverse_mirror_each_other(num_steps: int, shift: float) -> None:
    mirrored = [1 - t for t in reversed(time_grid(num_steps, 1 / shift))]
    assert time_grid(num_steps, shift) == pytest.approx(mirrored, abs=1e-9)


@given(st.integers(2, 100), st.floats(1.01, 20))
def test_a_shift_above_one_spends_more_steps_near_the_noise(num_steps: int, shift: float) -> None:
    inner = zip(time_grid(num_steps, shift)[1:-1], time_grid(num_steps)[1:-1], strict=True)
    assert all(shifted < uniform for shifted, uniform in inner)


@pytest.mark.parametrize(
    ("num_steps", "shift", "field"),
    [(0, 1, "steps"), (-3, 1, "steps"), (4, 0, "time_shift"), (4, -1, "time_shift"), (4, math.nan, "time_shift")],
)
def test_bad_grids_are_refused(num_steps: int, shift: float, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        time_grid(num_steps, shift)
    assert caught.value.field == field


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5))
def test_noise_depends_on_its_seed_alone(seeds: list[int]) -> None:
    together = initial_noise(seeds, (2, 3))
    assert together.shape == (len(seeds), 2, 3)
    for row, seed in zip(together, seeds, strict=True):
        assert torch.equal(row, initial_noise([seed], (2, 3))[0])


def test_noise_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    initial_noise([1, 2], (8,))
    assert torch.equal(torch.get_rng_state(), before)


def test_noise_is_standard_normal_and_differs_between_neighbouring_seeds() -> None:
    noise = initial_noise(range(64), (3, 16, 16))
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    assert float(noise.std()) == pytest.approx(1, abs=0.02)
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(64)
    assert float(correlations.abs().max()) < 0.2


@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 4), (3, 2, 4, 4)])
def test_a_value_for_each_sample_reaches_all_of_it_whatever_its_dimensions(shape: tuple[int, ...]) -> None:
    values = torch.tensor([1.0, 2.0])
    scaled = expand_like(values, torch.ones(2, *shape)) * torch.ones(2, *shape)
    assert scaled.shape == (2, *shape)
    assert torch.equal(scaled.reshape(2, -1).mean(dim=1), values)


OWN_LAST_STEP = [
    TimeShift(factor=3.0, last=0.003),
    TimeShift(factor=2.5, terminal=0.02),
    TimeShift(factor=1.0, last=0.2, terminal=0.1),
]


@given(st.integers(1, 200), st.sampled_from(OWN_LAST_STEP))
def test_a_grid_with_a_last_step_of_its_own_rises_from_noise_to_data(num_steps: int, shift: TimeShift) -> None:
    grid = time_grid(num_steps, shift)
    assert len(grid) == num_steps + 1
    assert (grid[0], grid[-1]) == (0, 1)
    assert all(t < t_next for t, t_next in pairwise(grid))


def test_the_last_step_starts_where_it_is_said_to() -> None:
    assert time_grid(5, TimeShift(factor=1.0, last=0.2)) == pytest.approx(time_grid(5))
    assert time_grid(5, TimeShift(factor=1.0, last=0.04))[:-1] == pytest.approx([0, 0.24, 0.48, 0.72, 0.96])
    even, stretched = time_grid(5, 2.0), time_grid(5, TimeShift(factor=2.0, terminal=0.1))
    assert stretched[-2:] == pytest.approx([0.9, 1])
    assert stretched[1:-1] == pytest.approx([t * 0.9 / even[-2] for t in even[1:-1]])


@pytest.mark.parametrize("told", [{"last": 0.003}, {"terminal": 0.02}, {}, {"last": 0.01, "terminal": 0.05}])
def test_grids_are_those_of_diffusers(told: dict[str, float]) -> None:
    """Whose pipelines give either the noise levels of evenly spaced steps, or none."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, shift_terminal=told.get("terminal"))
    if "last" in told:
        scheduler.sigma_min = told["last"]
    for num_steps in (2, 7, 28):
        even = [1 - step / num_steps for step in range(num_steps)]
        scheduler.set_timesteps(num_steps, sigmas=None if "last" in told else even)
        expected = [1 - sigma for sigma in scheduler.sigmas.tolist()]
        assert time_grid(num_steps, TimeShift(factor=3.0, **told)) == pytest.approx(expected, abs=1e-6)


def test_a_shift_that_grows_with_the_steps_is_another_for_each_number_of_them() -> None:
    growing = TimeShift(factor=2.0, growth=math.log(1.5))
    for num_steps in (1, 2, 3):
        assert time_grid(num_steps, growing) == pytest.approx(time_grid(num_steps, 2.0 * 1.5**num_steps))
    with pytest.raises(
        InvalidInput, match=r"steps: 20 is not allowed; .* lies in 0\.01 to 100\.0, and theirs is 6\.7e\+03"
    ):
        time_grid(20, growing)
    with pytest.raises(InvalidInput, match="steps: 1000 is not allowed"):
        time_grid(MAX_STEPS, TimeShift(factor=100.0, growth=MAX_SHIFT_GROWTH))
    with pytest.raises(InvalidInput, match=r"time_shift\.growth: -0\.6 is not allowed"):
        TimeShift(factor=1.0, growth=-0.6)


@pytest.mark.parametrize(
    "told",
    [{"factor": 1.0, "growth": 1.1}, {"factor": 0.0}, {"factor": 1.0, "last": 0.0}, {"factor": 1.0, "terminal": 1.0}],
)
def test_a_last_step_at_no_noise_level_is_refused(told: dict[str, float]) -> None:
    with pytest.raises(InvalidInput, match="time_shift"):
        TimeShift(**told)
