"""Euler's method along the velocity field, with guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from elit_serve.plans.grid import time_grid
from elit_serve.plans.plan import Branch, Plan


class Velocity(Protocol):
    """The model as the sampler sees it."""

    def __call__(self, x: Tensor, t: float, branches: Sequence[Branch]) -> Sequence[Tensor]:
        """x [B, *shape] at time t -> the velocity [B, *shape] of each branch, in order."""


def guided(main: Tensor, weak: Tensor, scale: float | Tensor) -> Tensor:
    """Equation 3, w v_main - (w - 1) v_weak, from velocities [B, *shape]; w is `scale`, a number or [B, 1, ...].

    Exactly v_main at scale 1 and where both agree.
    """
    return main + (scale - 1) * (main - weak)


def euler_step(velocity: Velocity, x: Tensor, plan: Plan, grid: Sequence[float], step: int) -> Tensor:
    """x [B, *shape] at grid[step] -> x at grid[step + 1]."""
    t, t_next = grid[step], grid[step + 1]
    main, *weak = velocity(x, t, plan.branches(step, t))
    combined = guided(main, weak[0], plan.guidance.scale) if weak else main
    return x + (t_next - t) * combined


def sample(velocity: Velocity, noise: Tensor, plan: Plan, on_step: Callable[[int], None] | None = None) -> Tensor:
    """Integrates from noise [B, *shape] at t = 0 to samples [B, *shape] at t = 1.

    `on_step` is called with the number of steps done after each of them. The global error is of first order
    in 1 / num_steps.
    """
    grid = time_grid(plan.num_steps, plan.time_shift)
    x = noise
    for step in range(plan.num_steps):
        x = euler_step(velocity, x, plan, grid, step)
        if on_step is not None:
            on_step(step + 1)
    return x
