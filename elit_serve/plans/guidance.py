"""How a weak prediction steers the main one, as a value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from elit_serve.errors import InvalidInput

GuidanceMethod = Literal["none", "cfg", "ag", "ccfg"]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How a weak prediction steers the main one (paper, section 3.4, equation 3).

    method: `cfg` drops the condition at the main level, `ag` (autoguidance) keeps it at `weak_level`, `ccfg` drops it
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

    @property
    def is_off(self) -> bool:
        """Whether no step has a weak pass."""
        return self.method == "none" or self.scale == 1

    @property
    def has_weak_level(self) -> bool:
        """Whether `weak_level` means anything: classifier-free guidance runs its weak pass at the main level."""
        return self.method in ("ag", "ccfg")

    @property
    def drops_condition(self) -> bool:
        """Whether the weak pass is without the condition; autoguidance keeps it."""
        return self.method != "ag"

    @property
    def min_level(self) -> int:
        """The lowest level that a guided step may run at: autoguidance needs a weak level below the main one."""
        return self.weak_level + 1 if self.method == "ag" else 1

    def check_levels(self, levels: Sequence[int]) -> None:
        """Raises `InvalidInput` if a picture whose steps run at these levels cannot be guided so."""
        if min(levels) < self.min_level:
            raise InvalidInput(
                "guidance.weak_level",
                self.weak_level,
                f"autoguidance needs a weak level below the lowest level of the plan, {min(levels)}",
            )

    def check_negative(self, negative: str | None) -> None:
        """Raises `InvalidInput` for what pictures should not show where no weak pass is told of it. An empty text asks
        for nothing."""
        if not negative or (self.drops_condition and not self.is_off):
            return
        how = "are not guided" if self.is_off else "are guided by autoguidance, which keeps the prompt"
        raise InvalidInput("negative_prompt", negative, f"left out: these pictures {how}, so nothing would come of it")

    def applies_at(self, t: float) -> bool:
        return not self.is_off and self.interval[0] <= t <= self.interval[1]

    def weak_level_at(self, level: int) -> int:
        """The level of the weak pass beside a main one at `level`; never above it."""
        return level if self.method == "cfg" else min(self.weak_level, level)

    def weak_caps(self, times: Sequence[float], full_level: int) -> tuple[int | None, ...]:
        """For a step at each of these times, the highest level of its weak pass, or None where it has none.

        A guided step at level l has its weak pass at min(cap, l). full_level: the model's highest.
        """
        cap = full_level if self.method == "cfg" else self.weak_level
        return tuple(cap if self.applies_at(t) else None for t in times)

    def is_like(self, other: Guidance) -> bool:
        """Whether both do the same, whatever their fields without meaning say."""
        return self._meaning() == other._meaning()

    def _meaning(self) -> tuple[object, ...]:
        if self.is_off:
            return ("none",)
        return self.method, self.scale, self.weak_level if self.has_weak_level else None, tuple(self.interval)
