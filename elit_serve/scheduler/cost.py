"""What a denoising step costs at every level, as numbers; knows nothing of how they were measured."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CostTable:
    """Milliseconds of one step of one image, measured at some levels, interpolated linearly between them.

    step_costs_ms: (level, weak level or None for an unguided step) -> milliseconds.
    overhead_ms: what an image costs beside its steps: noise, decoding, encoding.
    """

    step_costs_ms: Mapping[tuple[int, int | None], float]
    overhead_ms: float

    def __post_init__(self) -> None:
        assert self.step_costs_ms, "a cost table needs at least one measurement"

    def step_ms(self, level: int, weak_level: int | None) -> float:
        """One step at `level`, guided by a pass at `weak_level` (at most `level`) or unguided.

        Outside the measured range the nearest measurement counts. Between two measured levels the weak level keeps
        its relative place between 1 and the level, so that equal levels are interpolated between equal levels.
        """
        measured = self._levels(guided=weak_level is not None)
        low, high, share = _neighbours(measured, level)
        if weak_level is None:
            return _mix(self.step_costs_ms[low, None], self.step_costs_ms[high, None], share)
        place = (min(weak_level, level) - 1) / (level - 1) if level > 1 else 1.0
        return _mix(self._guided_ms(low, 1 + place * (low - 1)), self._guided_ms(high, 1 + place * (high - 1)), share)

    def predict_ms(self, levels: Sequence[int], weak_levels: Sequence[int | None]) -> float:
        """One image under a whole plan: a level for every step, and a weak level or None for every step."""
        steps = Counter(zip(levels, weak_levels, strict=True))
        return self.overhead_ms + sum(count * self.step_ms(*step) for step, count in steps.items())

    def _levels(self, *, guided: bool) -> list[int]:
        return sorted({level for level, weak_level in self.step_costs_ms if (weak_level is not None) == guided})

    def _guided_ms(self, level: int, weak_level: float) -> float:
        """A guided step at a measured level; the weak level may lie between two measured ones."""
        weak_levels = sorted(weak for main, weak in self.step_costs_ms if main == level and weak is not None)
        low, high, share = _neighbours(weak_levels, weak_level)
        return _mix(self.step_costs_ms[level, low], self.step_costs_ms[level, high], share)


def _neighbours(measured: Sequence[int], wanted: float) -> tuple[int, int, float]:
    """The measured values around `wanted`, and its place between them in [0, 1]."""
    index = bisect_left(measured, wanted)
    if index == 0:
        return measured[0], measured[0], 0.0
    if index == len(measured):
        return measured[-1], measured[-1], 0.0
    low, high = measured[index - 1], measured[index]
    return low, high, (wanted - low) / (high - low)


def _mix(low: float, high: float, share: float) -> float:
    return low + share * (high - low)
