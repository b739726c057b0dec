"""What longer steps cost: how good a picture is that skips times of its plan's grid."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Coarsening:
    """How long a plan's steps may become, and what a picture loses by that.

    A step of *stride* s goes from one time of the plan's grid to the s-th after it. With stride s throughout, a picture
    is made in 1/s as many even steps, which is measured. One whose strides change loses the mean of what its steps'
    strides lose so, a step from t to t' weighted by W(t') - W(t), with W(t) = 1 - (1 - t)^early: what is skipped near
    the noise costs more than what is skipped near the picture.

    early: 1 weighs all times alike, more the early ones. losses: by level, the share of quality that is lost with each
    stride throughout, from stride 0, which there is not, over 1, which loses nothing, to the largest that is allowed.
    """

    early: float
    losses: Mapping[int, tuple[float, ...]]

    def __post_init__(self) -> None:
        assert self.early >= 1, self.early
        assert self.losses, "losses of at least one level"
        assert len({len(row) for row in self.losses.values()}) == 1, "as many strides at every level"
        assert all(row[:2] == (0.0, 0.0) for row in self.losses.values()), self.losses

    @property
    def max_stride(self) -> int:
        return len(next(iter(self.losses.values()))) - 1

    def loss(self, level: float, stride: int) -> float:
        """Throughout; linear between two measured levels, and outside of them that of the nearest."""
        grid = sorted(self.losses)
        if level <= grid[0] or level >= grid[-1]:
            return self.losses[grid[0] if level <= grid[0] else grid[-1]][stride]
        high = bisect_left(grid, level)
        share = (level - grid[high - 1]) / (grid[high] - grid[high - 1])
        return (1 - share) * self.losses[grid[high - 1]][stride] + share * self.losses[grid[high]][stride]

    def lost(self, times: Sequence[float], levels: Sequence[int], strides: Sequence[int]) -> float:
        """The share of quality that a picture loses. times: of the plan's grid; a level and a stride for each step."""
        at, total = 0, 0.0
        for level, stride in zip(levels, strides, strict=True):
            total += self.weight(times[at], times[at + stride]) * self.loss(level, stride)
            at += stride
        return total

    def weight(self, start: float, end: float) -> float:
        """How much a step between these times counts: all steps of a picture come to 1."""
        return float((1 - start) ** self.early - (1 - end) ** self.early)
