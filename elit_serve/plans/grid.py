"""The time grid: where between noise (t = 0) and data (t = 1) the solver stops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import (
    MAX_LAST_NOISE,
    MAX_SHIFT_GROWTH,
    MAX_TIME_SHIFT,
    MIN_LAST_NOISE,
    MIN_TIME_SHIFT,
)


@dataclass(frozen=True, kw_only=True)
class TimeShift:
    """A shift as pipelines of diffusers have it: its last step may start at a noise level of its own, and it may depend
    on the number of steps.

    factor: the shift. last: the noise level, before the shift, at which the last step starts; all steps but the last
        are spaced evenly up to it. None spaces all of them evenly.
    terminal: the noise level, after the shift, at which the last step starts: all times are stretched to meet it.
    growth: by how much the logarithm of the shift grows with each step of the grid, from that of the factor. None is
        the same shift for any number of steps.
    """

    factor: float
    last: float | None = None
    terminal: float | None = None
    growth: float | None = None

    def __post_init__(self) -> None:
        check_factor(self.factor)
        for name, noise in (("last", self.last), ("terminal", self.terminal)):
            if noise is not None and not MIN_LAST_NOISE <= noise <= MAX_LAST_NOISE:
                allowed = f"a noise level lies in {MIN_LAST_NOISE} to {MAX_LAST_NOISE}"
                raise InvalidInput(f"time_shift.{name}", noise, allowed)
        if self.growth is not None and not abs(self.growth) <= MAX_SHIFT_GROWTH:
            raise InvalidInput("time_shift.growth", self.growth, f"{-MAX_SHIFT_GROWTH} to {MAX_SHIFT_GROWTH}")

    def factor_of(self, num_steps: int) -> float:
        """The shift of a grid of so many steps. Raises `InvalidInput` for one that is beyond bounds."""
        if self.growth is None:
            return self.factor
        factor = self.factor * math.exp(self.growth * num_steps)
        if not MIN_TIME_SHIFT <= factor <= MAX_TIME_SHIFT:
            allowed = (
                f"a shift of their time grid lies in {MIN_TIME_SHIFT} to {MAX_TIME_SHIFT}, and theirs is {factor:.2g}"
            )
            raise InvalidInput("steps", num_steps, allowed)
        return factor


Shift = float | TimeShift  # a number is a shift of steps that are spaced evenly before


def time_grid(num_steps: int, shift: Shift = 1.0) -> list[float]:
    """num_steps + 1 times from 0 to 1, uniform, then shifted.

    A shift s > 1 spends more of the steps near the noise: with noise level u = 1 - t,
    u' = s u / (1 + (s - 1) u) (Esser et al. 2024, equation 23), which is t' = t / (1 + (s - 1) (1 - t)), exact at
    both ends. The paper samples Qwen-Image with s = 2.
    """
    if num_steps < 1:
        raise InvalidInput("steps", num_steps, "at least one step is needed")
    if isinstance(shift, TimeShift):
        return _with_own_last_step(num_steps, shift)
    check_factor(shift)
    return [_shifted(step / num_steps, shift) for step in range(num_steps + 1)]


def check_factor(shift: float) -> None:
    """Raises `InvalidInput` for a shift that would divide by zero or overflow."""
    if not MIN_TIME_SHIFT <= shift <= MAX_TIME_SHIFT:
        raise InvalidInput("time_shift", shift, f"a shift lies in {MIN_TIME_SHIFT} to {MAX_TIME_SHIFT}; 1 is uniform")


def _shifted(t: float, factor: float) -> float:
    return t / (1 + (factor - 1) * (1 - t))


def _with_own_last_step(num_steps: int, shift: TimeShift) -> list[float]:
    """The starts of all steps, and the end."""
    if num_steps == 1:
        return [0.0, 1.0]
    last = 1 / num_steps if shift.last is None else shift.last
    factor = shift.factor_of(num_steps)
    starts = [_shifted((1 - last) * step / (num_steps - 1), factor) for step in range(num_steps)]
    stretch = 1.0 if shift.terminal is None else (1 - shift.terminal) / starts[-1]
    return [*(stretch * t for t in starts), 1.0]


def times_of(strides: Sequence[int], shift: Shift = 1.0) -> tuple[float, ...]:
    """Where steps start that are so many steps of a grid each, and where the last one ends.

    >>> times_of([1, 1, 2])
    (0.0, 0.25, 0.5, 1.0)
    """
    grid = time_grid(sum(strides), shift)
    return tuple(grid[at] for at in accumulate(strides, initial=0))
