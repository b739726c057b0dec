"""Pace: what a step of a request may take if all its remaining steps took as long. And plans that follow from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

StepSeconds = Callable[[int, int], float]  # (level, batch) -> seconds of one step


@dataclass(slots=True, kw_only=True)
class Need:
    """due_s: when the last step must have run. level: at which the steps are meant to run."""

    due_s: float
    steps_left: int
    level: int

    def pace_s(self, now_s: float) -> float:
        return (self.due_s - now_s) / self.steps_left


def largest_in_pace(queue: Sequence[Need], now_s: float, max_batch: int, step_s: Callable[[int], float]) -> int:
    """The longest start of `queue` that can share a step (of so many seconds by batch) without anybody falling behind.

    0 if even the first cannot run alone.
    """
    largest, tightest_s = 0, float("inf")
    for size, need in enumerate(queue[:max_batch], 1):
        tightest_s = min(tightest_s, need.pace_s(now_s))
        if step_s(size) <= tightest_s:
            largest = size
    return largest


def all_in_time(needs: Sequence[Need], now_s: float, max_batch: int, step_s: StepSeconds) -> bool:
    """Whether earliest deadline first, in launches of one level that keep everybody's pace, makes every due time."""
    queue = sorted(needs, key=lambda need: need.due_s)
    while queue:
        level = queue[0].level
        cohort = [need for need in queue if need.level == level]
        size = largest_in_pace(cohort, now_s, max_batch, lambda batch, at=level: step_s(at, batch))  # type: ignore[misc]
        if size == 0:
            return False
        steps = min(need.steps_left for need in cohort[:size])
        now_s += steps * step_s(level, size)
        for need in cohort[:size]:
            need.steps_left -= steps
        queue = [need for need in queue if need.steps_left]
    return True
