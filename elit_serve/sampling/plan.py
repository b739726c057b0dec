"""What one picture costs and how it is guided, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from elit_serve.errors import InvalidInput

GuidanceMethod = Literal["none", "cfg", "ag", "ccfg"]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One evaluation of the model at a step: how many latents per group, and whether the class is dropped."""

    level: int
    class_dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How a weak prediction steers the main one (paper, section 3.4, equation 3).

    method: `cfg` drops the class at the main level, `ag` (autoguidance) keeps it at `weak_level`, `ccfg` drops it
    at `weak_level`, `none` does not guide.
    scale: w = lambda + 1 of the paper, so 1 means off: v = w v_main - (w - 1) v_weak.
    interval: guide only at times t within it, both ends included.
    """

    method: GuidanceMethod = "none"
    scale: float = 1.0
    weak_level: int = 1
    interval: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.method not in get_args(GuidanceMethod):
            raise InvalidInput("guidance.method", self.method, f"one of {', '.join(get_args(GuidanceMethod))}")
        if not (math.isfinite(self.scale) and self.scale >= 1):
            raise InvalidInput("guidance.scale", self.scale, "a scale is at least 1, and 1 means off")
        if self.weak_level < 1:
            raise InvalidInput("guidance.weak_level", self.weak_level, "a level is at least 1")
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise InvalidInput("guidance.interval", self.interval, "two times with 0 <= start <= end <= 1")

    def applies_at(self, t: float) -> bool:
        return self.method != "none" and self.scale != 1 and self.interval[0] <= t <= self.interval[1]

    def weak_branch(self, level: int) -> Branch:
        """The weak evaluation beside a main one at `level`; never above it."""
        if self.method == "cfg":
            return Branch(level=level, class_dropped=True)
        return Branch(level=min(self.weak_level, level), class_dropped=self.method == "ccfg")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything beside seed and label that decides a picture: a level for every step, guidance, time grid."""

    levels: tuple[int, ...]
    guidance: Guidance = Guidance()
    time_shift: float = 1.0

    def __post_init__(self) -> None:
        if not self.levels or min(self.levels) < 1:
            raise InvalidInput("levels", self.levels, "one level of at least 1 for every step")
        if self.guidance.method == "ag" and min(self.levels) <= self.guidance.weak_level:
            raise InvalidInput(
                "guidance.weak_level",
                self.guidance.weak_level,
                f"autoguidance needs a weak level below the lowest level of the plan, {min(self.levels)}",
            )

    @property
    def num_steps(self) -> int:
        return len(self.levels)

    @property
    def mean_level(self) -> float:
        return sum(self.levels) / len(self.levels)

    def branches(self, step: int, t: float) -> tuple[Branch, ...]:
        """What the model evaluates at a step: the main branch, then the weak one if guidance applies."""
        main = Branch(level=self.levels[step])
        if not self.guidance.applies_at(t):
            return (main,)
        return main, self.guidance.weak_branch(main.level)

    def at_level(self, level: int) -> Plan:
        """This plan with every step at `level`."""
        return replace(self, levels=(level,) * self.num_steps)
