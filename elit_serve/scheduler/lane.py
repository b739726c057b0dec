"""Who may share launches."""

from __future__ import annotations

from typing import NamedTuple

from elit_serve.plans.step_kind import StepKind


class Lane(NamedTuple):
    """Steps of one shape with one weak pass: those that run at the same level can share a launch.

    weak_cap: as in `Demand`, the highest level of the weak pass; None is an unguided step.
    """

    shape: str
    weak_cap: int | None

    def at(self, level: int) -> StepKind:
        """A step of this lane at a level."""
        return StepKind.capped(self.shape, level, self.weak_cap)
