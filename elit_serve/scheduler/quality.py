"""How good pictures are at every level and plan, as numbers; knows nothing of how they were measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import inf, log
from statistics import fmean

from elit_serve.plans.changed_levels import step_weights
from elit_serve.plans.coarsening import Coarsening, between

LOWEST_LEVEL_QUALITY = 0.75  # a guess, where nothing is measured: of a picture at the lowest level, 1 being the highest


@dataclass(frozen=True, kw_only=True)
class MeasuredPlan:
    """One way to draw a picture, and how good it is on the scale of `QualityTable.levels`.

    name: for whoever knows which steps, guidance method, scale and interval it stands for.
    weak_caps: one entry per step, as in `Demand`; steps outside the guidance interval are unguided.
    ceilings: the highest level of each step, as in `Demand`: equal ones, or rising for a low-early/high-late schedule.
    quality: when every step runs at its ceiling.
    levels: mean level -> quality, as measured with these steps and this guidance; None is this plan alone.
    min_level: the lowest level at which its steps may run: autoguidance stays above its weak level.
    skipped: the steps that skip their cores, as in `Demand`.
    coarsening: how long its steps may become, and what that costs; None is not at all.
    """

    name: str
    weak_caps: tuple[int | None, ...]
    ceilings: tuple[int, ...]
    quality: float
    levels: Mapping[float, float] | None = None
    min_level: int = 1
    skipped: tuple[int, ...] = ()
    coarsening: Coarsening | None = None

    def __post_init__(self) -> None:
        assert len(self.weak_caps) == len(self.ceilings), (len(self.weak_caps), len(self.ceilings))
        assert self.min_level <= min(self.ceilings), (self.min_level, self.ceilings)

    @property
    def num_steps(self) -> int:
        return len(self.weak_caps)

    @property
    def longer_strides(self) -> range:
        """The strides above 1 that its steps may have."""
        return range(2, 1 + (1 if self.coarsening is None else self.coarsening.max_stride))

    @property
    def limits(self) -> tuple[int, ...] | None:
        """The ceilings that a request of this plan is held to: those of a schedule. A plan of one level may run at more
        where there is time, as far as pictures become better: guidance that suits few latents spoils those of many."""
        if len(set(self.ceilings)) > 1:
            return self.ceilings
        curve = {level: quality for level, quality in (self.levels or {}).items() if level >= self.ceilings[0]}
        best = max(curve, key=lambda level: (curve[level], level), default=inf)
        return None if best == max(curve, default=inf) else (int(best),) * self.num_steps


class StepWeights(dict[int, list[float]]):
    """Remembers `QualityTable.weights`: a decision asks for those of everybody."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self._late = late

    def __missing__(self, num_steps: int) -> list[float]:
        self[num_steps] = [num_steps * weight for weight in step_weights([1] * num_steps, self._late)]
        return self[num_steps]


@dataclass(frozen=True, kw_only=True)
class QualityTable:
    """Quality at some levels (more is better), linear between them.

    A picture whose levels change is worth the mean of what pictures at its steps' levels are worth, by what each step
    weighs, see `plans.changed_levels`.

    levels: level -> quality of the default plan, with at least one level. It must not fall with the level, and each
        piece must rise at most as fast as the one before (concave): policies weigh slopes against milliseconds.
    plans: richer plans that requests with open steps and guidance may be given.
    late: how much more late steps weigh than early ones, at least 1, where all weigh alike.
    """

    levels: Mapping[int, float]
    plans: tuple[MeasuredPlan, ...] = ()
    late: float = 1.0

    def __post_init__(self) -> None:
        assert self.late >= 1, self.late
        assert self.levels, "a quality table needs at least one level"
        slopes = self._slopes
        assert all(slope >= 0 for slope in slopes), f"quality falls with the level: {dict(self.levels)}"
        assert all(b <= a + 1e-9 for a, b in pairwise(slopes)), f"not concave: {dict(self.levels)}"

    def at(self, mean_level: float) -> float:
        """Of a picture whose steps ran at this level on average; the nearest end's outside the measured levels."""
        grid, index = self._grid, bisect_left(self._grid, mean_level)
        if index == 0 or index == len(grid):
            return self.levels[grid[min(index, len(grid) - 1)]]
        return self.levels[grid[index - 1]] + self._slopes[index - 1] * (mean_level - grid[index - 1])

    def of_steps(
        self, levels: Sequence[int], strides: Sequence[int] | None = None, coarsening: Coarsening | None = None
    ) -> float:
        """Of a picture of the default plan whose steps ran at these levels.

        Each counts for what a picture with all steps at its level is worth. At the mean level it would be read off too
        high, because quality is concave in the level. A step of a stride counts as so many, and what long ones lose
        together comes off.
        """
        return kept(coarsening, levels, strides) * self._mean([self.at(level) for level in levels], strides)

    def moved(self, quality: float, measured_at: float, mean_level: float) -> float:
        """What a plan of this quality, measured at one mean level, is worth at another one: it gains or loses the same
        share as the default plan does between them. At most 1."""
        return min(1.0, quality * self.at(mean_level) / self.at(measured_at))

    def of_plan(self, plan: MeasuredPlan, levels: Sequence[int], strides: Sequence[int] | None = None) -> float:
        """Of a picture that is made by this plan, its steps at these levels.

        At its ceilings it is what was measured. Otherwise its steps count one by one, as in `of_steps`. Where a single
        level is measured, others gain or lose the default plan's share.
        """
        if tuple(levels) == plan.ceilings:
            return plan.quality
        curve = plan.levels or {fmean(plan.ceilings): plan.quality}
        if len(curve) > 1:
            worths = [between(curve, level) for level in levels]
        else:
            ((measured_at, quality),) = curve.items()
            worths = [self.moved(quality, measured_at, level) for level in levels]
        return kept(plan.coarsening, levels, strides) * self._mean(worths, strides)

    def _mean(self, worths: Sequence[float], strides: Sequence[int] | None) -> float:
        """Of a picture's steps, by what they weigh."""
        if self.late == 1 or min(worths) == max(worths):
            return fmean(worths, strides)
        return fmean(worths, step_weights(strides or [1] * len(worths), self.late))

    @cached_property
    def weights(self) -> StepWeights:
        """What steps weigh, 1 in the mean of a picture's, by how many it has; made when it is asked for."""
        return StepWeights(self.late)

    def slope(self, level: float) -> float:
        """What one more latent adds just below this level (at or below the lowest: just above it)."""
        if not self._slopes:
            return 0.0
        return self._slopes[min(max(bisect_left(self._grid, level) - 1, 0), len(self._slopes) - 1)]

    @cached_property
    def _grid(self) -> list[int]:
        return sorted(self.levels)

    @cached_property
    def _slopes(self) -> list[float]:
        pairs = pairwise(self._grid)
        return [(self.levels[high] - self.levels[low]) / (high - low) for low, high in pairs]


def kept(coarsening: Coarsening | None, levels: Sequence[int], strides: Sequence[int] | None) -> float:
    """The share of quality that a picture keeps whose steps have these strides; None are those of its plan."""
    if strides is None or max(strides) == 1:
        return 1.0
    assert coarsening is not None, "nothing is known of longer steps"
    return 1 - coarsening.lost(levels, strides)


def logarithmic(levels: Sequence[int], *, lowest: float) -> dict[int, float]:
    """A concave curve for `QualityTable.levels`: every doubling adds the same, from `lowest` at the lowest level to 1.

    q(level) = lowest + (1 - lowest) log(level / low) / log(high / low)

    >>> logarithmic([4, 16, 64], lowest=0.75)
    {4: 0.75, 16: 0.875, 64: 1.0}
    """
    low, high = min(levels), max(levels)
    if low == high:
        return {low: 1.0}
    return {level: lowest + (1 - lowest) * log(level / low) / log(high / low) for level in levels}


def placeholder_quality(levels: Sequence[int]) -> QualityTable:
    """A stated guess until a model directory brings a measured `quality.json`; nothing of it is measured.

    An assumed concave curve over these levels: 0.75 at the lowest, 1 at the highest, the same for every doubling.
    """
    return QualityTable(levels=logarithmic(levels, lowest=LOWEST_LEVEL_QUALITY))
