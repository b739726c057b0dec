"""Which stride is best where on a plan's grid, for what it saves and what it loses."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from itertools import accumulate

from elit_serve.plans.coarsening import Coarsening


class Strides:
    """A step of stride s costs each step of the grid that it covers 1/s of its seconds, and its share of what the
    stride loses. The best has the least loss(s) * density + saving / s, where `saving` is the price of the step's
    seconds over its quality. A long last step loses something besides: one that would reach the end stops one short of
    it where that is worth another step.

    density: how much each place of the grid weighs, relative to the mean; it never rises along the way.
    """

    def __init__(self, coarsening: Coarsening) -> None:
        self.longest = coarsening.max_stride
        num_steps = len(coarsening.weights)
        falling = accumulate(reversed(coarsening.weights), max)  # also where a shifted grid has longer steps later
        self.density = [num_steps * weight for weight in falling][::-1]
        self._coarsening = coarsening
        self._losses: dict[int, tuple[float, ...]] = {}
        self._turns: dict[int, tuple[list[float], list[int]]] = {}

    def losses(self, level: int) -> tuple[float, ...]:
        """As `Coarsening.loss`, by stride."""
        found = self._losses.get(level)
        if found is None:
            found = tuple(self._coarsening.loss(level, stride) for stride in range(self.longest + 1))
            self._losses[level] = found
        return found

    def best(self, level: int, saving: float, density: float) -> int:
        """At a place that weighs so much."""
        turns, strides = self._turns_of(level)
        return strides[bisect_left(turns, saving / density) if density > 0 else len(turns)]

    def everywhere(self, level: int, saving: float) -> list[int]:
        """The best at every place of the grid: they grow along it, since what is skipped weighs less and less, but for
        the end."""
        turns, strides = self._turns_of(level)
        found, num_steps = [1] * len(self.density), len(self.density)
        for turn, stride in zip(turns, strides[1:], strict=True):
            if saving > 0:
                first = bisect_right(self.density, -saving / turn, key=_negative) if turn > 0 else 0
                found[first:] = [stride] * (num_steps - first)
        for at in range(max(num_steps - self.longest, 0), num_steps - 1):
            left = num_steps - at
            if found[at] >= left and num_steps * self._coarsening.end_loss(level, left) > saving:
                found[at] = left - 1
        return found

    def _turns_of(self, level: int) -> tuple[list[float], list[int]]:
        """(savings over density from which on each stride is better than the one before, the strides, growing)."""
        if level not in self._turns:
            losses, turns, strides = self.losses(level), [], [1]
            while (last := strides[-1]) < self.longest:
                longer = range(last + 1, self.longest + 1)
                turn, shorter = min(((losses[s] - losses[last]) / (1 / last - 1 / s), -s) for s in longer)
                turns.append(turn)
                strides.append(-shorter)
            self._turns[level] = turns, strides
        return self._turns[level]


def _negative(density: float) -> float:
    return -density
