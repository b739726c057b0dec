"""The time grid: where between noise (t = 0) and data (t = 1) the solver stops."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import MAX_TIME_SHIFT, MIN_TIME_SHIFT


def time_grid(num_steps: int, shift: float = 1.0) -> list[float]:
    """num_steps + 1 times from 0 to 1, uniform, then shifted.

    A shift s > 1 spends more of the steps near the noise: with noise level u = 1 - t,
    u' = s u / (1 + (s - 1) u) (Esser et al. 2024, equation 23), which is t' = t / (1 + (s - 1) (1 - t)), exact at
    both ends. The paper samples Qwen-Image with s = 2.
    """
    if num_steps < 1:
        raise InvalidInput("steps", num_steps, "at least one step is needed")
    if not MIN_TIME_SHIFT <= shift <= MAX_TIME_SHIFT:
        raise InvalidInput("time_shift", shift, f"a shift lies in {MIN_TIME_SHIFT} to {MAX_TIME_SHIFT}; 1 is uniform")
    times = (step / num_steps for step in range(num_steps + 1))
    return [t / (1 + (shift - 1) * (1 - t)) for t in times]


def times_of(strides: Sequence[int], shift: float = 1.0) -> tuple[float, ...]:
    """Where steps start that are so many steps of a grid each, and where the last one ends.

    >>> times_of([1, 1, 2])
    (0.0, 0.25, 0.5, 1.0)
    """
    grid = time_grid(sum(strides), shift)
    return tuple(grid[at] for at in accumulate(strides, initial=0))
