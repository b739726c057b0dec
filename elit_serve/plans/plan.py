"""What one picture costs and how it is guided, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from elit_serve.errors import InvalidInput
from elit_serve.plans.bounds import MAX_STEPS
from elit_serve.plans.grid import Shift, times_of
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.skips import NO_SKIPS, Skips
from elit_serve.plans.step_kind import StepKind


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything beside seed and condition that decides a picture: a level for every step, guidance, time grid, skips.

    strides: how many steps of the time grid each step is; none given is 1 for all, so that they are those of the grid.
    skips: what steps use again of earlier ones.
    """

    levels: tuple[int, ...]
    guidance: Guidance = Guidance()  # noqa: RUF009 (it is frozen)
    time_shift: Shift = 1.0
    strides: tuple[int, ...] = ()
    skips: Skips = NO_SKIPS

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise InvalidInput("levels", self.levels, "one level of at least 1 for every step")
        if not self.strides:
            object.__setattr__(self, "strides", (1,) * len(self.levels))
        if len(self.strides) != len(self.levels) or min(self.strides) < 1:
            raise InvalidInput("strides", self.strides, f"one of at least 1 for each of {len(self.levels)} steps")
        if self.grid_steps > MAX_STEPS:
            raise InvalidInput("strides", f"a sum of {self.grid_steps}", f"at most {MAX_STEPS} steps of the time grid")
        self.guidance.check_levels(self.levels)
        if self.skips:
            self.skips.check(self.is_guided)

    @property
    def num_steps(self) -> int:
        """Steps that run."""
        return len(self.levels)

    @property
    def grid_steps(self) -> int:
        """Steps of the time grid, of which some are left out where strides are above 1."""
        return sum(self.strides)

    @property
    def mean_level(self) -> float:
        """Of the steps that run."""
        return sum(self.levels) / len(self.levels)

    @property
    def times(self) -> tuple[float, ...]:
        """When each step starts, and the end: num_steps + 1 times from 0 to 1."""
        return times_of(self.strides, self.time_shift)

    @property
    def is_guided(self) -> list[bool]:
        """Whether each step is."""
        return [self.guidance.applies_at(t) for t in self.times[:-1]]

    def step_kinds(self, shape: str) -> list[StepKind]:
        """What each step is, of a sample of this shape (its name)."""
        caps, core = self.weak_caps(max(self.levels)), set(self.skips.core)
        return [
            StepKind.capped(shape, level, cap, step in core)
            for step, (level, cap) in enumerate(zip(self.levels, caps, strict=True))
        ]

    def weak_caps(self, full_level: int) -> tuple[int | None, ...]:
        """`Guidance.weak_caps` of its steps; a weak pass that is left out is none."""
        caps, left_out = self.guidance.weak_caps(self.times[:-1], full_level), set(self.skips.weak)
        return tuple(None if step in left_out else cap for step, cap in enumerate(caps))

    def at_level(self, level: int) -> Plan:
        """This plan with every step at `level`."""
        return replace(self, levels=(level,) * self.num_steps)


def runs_of(values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(level or stride, steps with it) in order.

    >>> runs_of([1, 1, 4])
    ((1, 2), (4, 1))
    """
    return tuple((value, len(list(run))) for value, run in groupby(values))
