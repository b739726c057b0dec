"""What one picture costs and how it is guided, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from elit_serve.errors import InvalidInput
from elit_serve.plans.grid import time_grid
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.step_kind import StepKind


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything beside seed and condition that decides a picture: a level for every step, guidance, time grid."""

    levels: tuple[int, ...]
    guidance: Guidance = Guidance()  # noqa: RUF009 (it is frozen)
    time_shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise InvalidInput("levels", self.levels, "one level of at least 1 for every step")
        self.guidance.check_levels(self.levels)

    @property
    def num_steps(self) -> int:
        return len(self.levels)

    @property
    def mean_level(self) -> float:
        return sum(self.levels) / len(self.levels)

    @property
    def times(self) -> tuple[float, ...]:
        """When each step starts, and the end: num_steps + 1 times from 0 to 1."""
        return tuple(time_grid(self.num_steps, self.time_shift))

    def step_kinds(self, shape: str) -> list[StepKind]:
        """What each step is, of a sample of this shape (its name)."""
        return [
            StepKind(shape, level, self.guidance.weak_level_at(level) if self.guidance.applies_at(t) else None)
            for level, t in zip(self.levels, self.times[:-1], strict=True)
        ]

    def weak_caps(self, full_level: int) -> tuple[int | None, ...]:
        """`Guidance.weak_caps` of its steps."""
        return self.guidance.weak_caps(self.times[:-1], full_level)

    def at_level(self, level: int) -> Plan:
        """This plan with every step at `level`."""
        return replace(self, levels=(level,) * self.num_steps)


def runs_of(levels: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """(level, steps at it) in order.

    >>> runs_of([1, 1, 4])
    ((1, 2), (4, 1))
    """
    return tuple((level, len(list(run))) for level, run in groupby(levels))
