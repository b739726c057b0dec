"""What longer steps cost: how good a picture is that skips times of its plan's grid."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import TypeVar

EARLY = 3.0  # of the rule: 2.25 to 3.25 fit best, for garden64 at either level; 1 is 0.005 further off at its full one
L = TypeVar("L", int, float)
Losses = Mapping[int, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Coarsening:
    """How long the steps of a plan may become, and what a picture loses by that; one object for each plan.

    A step of *stride* s goes from one time of the plan's grid to the s-th after it. With stride s throughout, a picture
    is made in 1/s as many even steps, which is measured. Of what it loses so, a share is lost at its last step,
    whatever comes before. The rest is lost on the way: one whose strides change loses the mean of what its steps'
    strides lose so, each weighted by the steps of the grid that it covers.

    weights: of each step of the grid, 1 together; see `of`. losses: by level, the share of quality that is lost on the
    way with each stride throughout, from stride 0, which there is not, over 1, which loses nothing, to the largest
    allowed. end_losses: the same of what is lost by a last step of each stride.
    """

    weights: tuple[float, ...]
    losses: Losses
    end_losses: Losses

    def __post_init__(self) -> None:
        assert self.losses, "losses of at least one level"
        assert self.losses.keys() == self.end_losses.keys()
        rows = [*self.losses.values(), *self.end_losses.values()]
        assert len({len(row) for row in rows}) == 1, "as many strides at every level"
        assert all(row[:2] == (0.0, 0.0) for row in rows), rows

    @classmethod
    def of(cls, times: Sequence[float], losses: Losses, last: Mapping[int, float] | None = None) -> Coarsening:
        """A step from t to t' weighs W(t') - W(t), with W(t) = 1 - (1 - t)^EARLY: what is skipped near the noise costs
        more than what is skipped near the picture.

        times: of the plan's grid, from 0 to 1. losses: by level and stride throughout, of all that is lost. last: the
        share of it that is lost at the last step, by level, as far as it is known; else none.
        """
        left = [(1 - t) ** EARLY for t in times]
        shares = {level: between(last, level) if last else 0.0 for level in losses}
        return cls(
            weights=tuple(before - after for before, after in pairwise(left)),
            losses={level: _times(1 - shares[level], row) for level, row in losses.items()},
            end_losses={level: _times(shares[level], row) for level, row in losses.items()},
        )

    @property
    def max_stride(self) -> int:
        return len(next(iter(self.losses.values()))) - 1

    def up_to(self, share: float) -> Coarsening | None:
        """Without the strides that lose more than this share at some level; None if no step may become longer then."""
        levels, longest = self.losses.keys(), 1
        while longest < self.max_stride and all(
            self.losses[level][longest + 1] + self.end_losses[level][longest + 1] <= share for level in levels
        ):
            longest += 1
        return _shortened(self, longest) if longest > 1 else None

    def loss(self, level: float, stride: int) -> float:
        """On the way, with this stride throughout."""
        return between({known: row[stride] for known, row in self.losses.items()}, level)

    def end_loss(self, level: float, stride: int) -> float:
        """By a last step of this stride."""
        return between({known: row[stride] for known, row in self.end_losses.items()}, level)

    def lost(self, levels: Sequence[int], strides: Sequence[int]) -> float:
        """The share of quality that a picture loses whose steps have these levels and strides, or lost so far."""
        at, total = 0, 0.0
        for level, stride in zip(levels, strides, strict=True):
            if stride > 1:
                total += sum(self.weights[at : at + stride]) * self.loss(level, stride)
            at += stride
        return total + self.end_loss(levels[-1], strides[-1]) if at == len(self.weights) else total


@lru_cache(maxsize=256)
def _shortened(coarsening: Coarsening, max_stride: int) -> Coarsening:
    """The same with no longer steps than this: one object for each."""
    if max_stride == coarsening.max_stride:
        return coarsening
    losses, end_losses = (
        {level: row[: max_stride + 1] for level, row in rows.items()}
        for rows in (coarsening.losses, coarsening.end_losses)
    )
    return Coarsening(weights=coarsening.weights, losses=losses, end_losses=end_losses)


def losses_between(known: Mapping[float, float], longest: int) -> tuple[float, ...]:
    """What each stride loses, from 0, up to `longest`: linear between those that are known and 1, which loses nothing,
    and never falling with the stride.

    >>> losses_between({2: 0.1, 4: 0.3}, 4)
    (0.0, 0.0, 0.1, 0.2, 0.3)
    """
    strides = [1.0, *sorted(known)]
    losses = list(accumulate([0.0, *(known[stride] for stride in strides[1:])], max))
    found = [0.0, 0.0]
    for stride in range(2, longest + 1):
        high = bisect_left(strides, stride)
        share = (stride - strides[high - 1]) / (strides[high] - strides[high - 1])
        found.append((1 - share) * losses[high - 1] + share * losses[high])
    return tuple(found)


def between(values: Mapping[L, float], level: float) -> float:
    """Linear between the levels, the nearest end's value outside of them.

    >>> between({1: 0.2, 4: 0.8}, 2.5), between({1: 0.2, 4: 0.8}, 16)
    (0.5, 0.8)
    """
    grid = sorted(values)
    if level <= grid[0] or level >= grid[-1]:
        return values[grid[0] if level <= grid[0] else grid[-1]]
    high = bisect_left(grid, level)
    share = (level - grid[high - 1]) / (grid[high] - grid[high - 1])
    return (1 - share) * values[grid[high - 1]] + share * values[grid[high]]


def _times(factor: float, row: Sequence[float]) -> tuple[float, ...]:
    return tuple(factor * loss for loss in row)
