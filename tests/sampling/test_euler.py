"""Euler's method against velocity fields that are known in closed form.

For data N(m, diag s^2) and noise N(0, I), X_t = (1 - t) X_0 + t X_1 is Gaussian with mean t m and variance
v = (1 - t)^2 + t^2 s^2 per coordinate, so E[X_1 - X_0 | X_t = x] = m + (t s^2 - (1 - t)) / v (x - t m), and the exact
flow takes x_0 to m + s x_0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.sampling import Velocity, guided_step, initial_noise

MEAN = torch.tensor([2.0, -1.0, 0.0, 0.5], dtype=torch.float64)
DEVIATION = torch.tensor([0.1, 0.5, 2.0, 3.0], dtype=torch.float64)


def gaussian_velocity(mean: Tensor, deviation: Tensor) -> Velocity:
    def velocity(x: Tensor, t: Tensor, condition: Any, level: int | Sequence[int]) -> Tensor:  # noqa: ARG001
        t = t.unsqueeze(1)
        variance = (1 - t) ** 2 + t**2 * deviation**2
        return mean + (t * deviation**2 - (1 - t)) / variance * (x - t * mean)

    return velocity


def sample(velocity: Velocity, noise: Tensor, plan: Plan) -> Tensor:
    """All steps of a plan, each told 1 for the main pass and 0 for the weak one."""
    x = noise
    for kind, t, t_next in zip(plan.step_kinds("4"), plan.times, plan.times[1:], strict=False):
        at = torch.full((len(x),), t, dtype=x.dtype)
        told = torch.ones(len(x)) if kind.weak_level is None else torch.tensor([1.0, 0.0]).repeat_interleave(len(x))
        x = guided_step(velocity, x, at, t_next - at, torch.full_like(at, plan.guidance.scale), told, kind)
    return x


def flow(num_steps: int, shift: float = 1.0) -> tuple[Tensor, Tensor]:
    """Mean and deviation that the sampler gives: the map is affine, so two points tell both."""
    points = torch.stack([torch.zeros(4), torch.ones(4)]).double()
    plan = Plan(levels=(1,) * num_steps, time_shift=shift)
    origin, one = sample(gaussian_velocity(MEAN, DEVIATION), points, plan)
    return origin, one - origin


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_mean_and_covariance_converge_at_first_order(shift: float) -> None:
    errors = []
    for num_steps in (100, 200, 400):
        mean, deviation = flow(num_steps, shift)
        torch.testing.assert_close(mean, MEAN)  # Euler is exact here: the mean moves along a straight line
        errors.append((deviation**2 - DEVIATION**2).abs())
    for coarse, fine in ((errors[0], errors[1]), (errors[1], errors[2])):
        ratio = coarse / fine
        assert ((ratio > 1.85) & (ratio < 2.15)).all(), ratio
    assert float((errors[2] / DEVIATION**2).max()) < 0.05


def test_sampled_points_have_the_mean_and_covariance_of_the_data() -> None:
    noise = initial_noise(range(4000), (4,)).double()
    points = sample(gaussian_velocity(MEAN, DEVIATION), noise, Plan(levels=(1,) * 200))
    assert ((points.mean(0) - MEAN).abs() < 4 * DEVIATION / 4000**0.5 + 1e-3).all()
    scaled = torch.cov((points / DEVIATION).T)
    torch.testing.assert_close(scaled, torch.eye(4, dtype=torch.float64), atol=0.1, rtol=0)


def test_one_step_goes_straight_along_the_first_velocity() -> None:
    noise = initial_noise([0], (4,)).double()
    torch.testing.assert_close(
        sample(gaussian_velocity(MEAN, DEVIATION), noise, Plan(levels=(1,))), MEAN.expand(1, 4)
    )  # at t = 0 the velocity is m - x


def test_guidance_between_two_gaussians_moves_the_mean_by_its_scale() -> None:
    away = MEAN - 1
    main, weak = gaussian_velocity(MEAN, DEVIATION), gaussian_velocity(away, DEVIATION)

    def velocity(x: Tensor, t: Tensor, condition: Tensor, level: int | Sequence[int]) -> Tensor:
        return torch.where(condition.bool().unsqueeze(1), main(x, t, condition, level), weak(x, t, condition, level))

    plan = Plan(levels=(1,) * 100, guidance=Guidance(method="cfg", scale=2.5))
    # the two fields have the same slope in x, so w main - (w - 1) weak is that of mean w m - (w - 1) (m - 1)
    guided = sample(velocity, torch.zeros(1, 4).double(), plan)
    expected = sample(gaussian_velocity(2.5 * MEAN - 1.5 * away, DEVIATION), torch.zeros(1, 4).double(), plan)
    torch.testing.assert_close(guided, expected)


class Recorder:
    """A velocity of zero that remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[float], Any, list[float]]] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Tensor, level: int | Sequence[int]) -> Tensor:
        self.calls.append((t.tolist(), level, condition.tolist()))
        return torch.zeros_like(x)


def test_the_velocity_sees_the_level_of_each_step_at_the_grids_times() -> None:
    recorder, levels = Recorder(), (8, 8, 2, 1, 16)
    plan = Plan(levels=levels, time_shift=2.0)
    sample(recorder, torch.zeros(1, 4), plan)
    assert [t for (t,), _, _ in recorder.calls] == pytest.approx(plan.times[:-1])
    assert [level for _, level, _ in recorder.calls] == list(levels)


def test_guidance_is_evaluated_inside_its_interval_only_in_one_call_with_the_main_pass() -> None:
    recorder = Recorder()
    guidance = Guidance(method="ccfg", scale=2, weak_level=2, interval=(0.3, 0.7))
    sample(recorder, torch.zeros(1, 4), Plan(levels=(4,) * 10, guidance=guidance))
    assert [len(t) for t, _, _ in recorder.calls] == [1, 1, 1, 2, 2, 2, 2, 2, 1, 1]
    assert recorder.calls[0][1:] == (4, [1.0])
    assert recorder.calls[4][1:] == ([4, 2], [1.0, 0.0])


def test_passes_at_one_level_are_one_pass_of_twice_the_batch() -> None:
    recorder = Recorder()
    sample(recorder, torch.zeros(3, 4), Plan(levels=(4,), guidance=Guidance(method="cfg", scale=2)))
    assert recorder.calls == [([0.0] * 6, 4, [1.0] * 3 + [0.0] * 3)]


@pytest.mark.parametrize("shape", [(4,), (3, 2, 2), (3, 2, 2, 2)])
def test_samples_of_any_shape_move_each_at_its_own_time(shape: tuple[int, ...]) -> None:
    kind = Plan(levels=(1,)).step_kinds("any")[0]
    x, dt = torch.zeros(2, *shape), torch.tensor([0.5, 0.25])
    one: Callable[..., Tensor] = lambda x, *_: torch.ones_like(x)  # noqa: E731
    moved = guided_step(one, x, torch.tensor([0.0, 0.5]), dt, torch.ones(2), torch.ones(2), kind)
    assert torch.equal(moved[0], torch.full(shape, 0.5))
    assert torch.equal(moved[1], torch.full(shape, 0.25))
