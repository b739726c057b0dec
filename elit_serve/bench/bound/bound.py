"""How good any schedule could be that knows all arrivals in advance: a linear programme over the time between events.

Events are the arrivals and the due times (deadline less the overhead after the last step). Between two of them, in
interval s, the same requests A(s) are present. Letters:

    K(s)            launches in s                       h(i, s) + z(i, s)   steps of request i in s
    Y(s), Z(s)      their images, and their excess      z(i, s)             the excess of those steps
    c(i), w(i)      share of i's steps run, and its mean excess times that share
    u(i)            the quality that i is worth

where the excess of a step is (level − lowest) / (full − lowest). Maximise Σ u / requests subject to

    h(i, s) + z(i, s) ≤ K(s)                        a launch holds one step of a request
    Σ_i (h + z) ≤ Y(s),  Σ_i z ≤ Z(s),  K(s) ≤ Y(s) ≤ max_batch · K(s)
    plane(K(s), Y(s), Z(s)) ≤ length of s           for every plane below the cost of launches of up to |A(s)| images
    c(i) ≤ Σ_s (h + z) / steps,  w(i) ≤ Σ_s z / steps,  w(i) ≤ c(i) ≤ 1
    u(i) ≤ intercept · c(i) + slope · w(i)          for every piece of the quality, which is concave

Why no schedule does better. Drop what misses its deadline from its launches, which costs no time (see
`hull.cost_planes`) and loses no quality. A launch that runs across an event is split over the intervals in proportion
to its time: every member arrived before it began and is due after it ended, so each is present in all of them. Then
every row holds for the sums over (parts of) launches: the first four launch by launch, the planes because they lie
below each launch's cost and add up, the last two because a finished request has c = 1 and w = its mean excess, and any
other is worth 0. Levels between those of the table cost no less than the planes say as long as the table interpolates
linearly, so they are covered too.

A picture counts here at the mean of its levels. What it is worth is less where they differ, because quality is concave.

How tight. The programme may mix launches in fractions, levels within a launch, and finish half of a request for half of
its worth; `looseness` says what that amounts to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from elit_serve.bench.bound.hull import Plane, cost_planes
from elit_serve.bench.bound.programme import Programme
from elit_serve.bench.simulate.workload import Setting
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand

if TYPE_CHECKING:
    from elit_serve.bench.bound.programme import Floats, Integers


@dataclass(frozen=True, kw_only=True)
class _Intervals:
    """lengths_ms of the intervals; request and interval of every pair in which the request is present."""

    lengths_ms: Floats
    request: Integers
    interval: Integers

    @property
    def num_present(self) -> Integers:
        counts: Integers = np.bincount(self.interval, minlength=len(self.lengths_ms))
        return counts


class ClairvoyantBound:
    """Bounds of one setting; planes are computed once."""

    def __init__(self, setting: Setting, quality: QualityTable) -> None:
        self._setting, self._quality = setting, quality
        self._planes: dict[int, tuple[Plane, ...]] = {}

    def mean_quality(self, demands: Sequence[Demand]) -> float:
        """No schedule of these requests has a higher mean quality, misses counting 0, on a device that does as told."""
        return self._programme(demands).bound() / len(demands)

    def _programme(self, demands: Sequence[Demand]) -> Programme:
        intervals = _intervals(demands, self._setting.overhead_s)
        programme = Programme()
        steps = self._steps(programme, intervals)
        self._requests(programme, intervals, len(demands), *steps)
        return programme

    def _steps(self, programme: Programme, intervals: _Intervals) -> tuple[Integers, Integers]:
        """Launches, images and excess of every interval; the columns of h and z."""
        lengths_ms, pair_interval = intervals.lengths_ms, intervals.interval
        each, pairs = np.arange(len(lengths_ms)), np.arange(len(pair_interval))
        most_launches = lengths_ms / self._shortest_launch_ms
        batch = self._setting.table.max_batch
        most_steps = np.minimum(most_launches[pair_interval], self._setting.num_steps)
        low, excess = programme.columns(most_steps).all, programme.columns(most_steps).all
        launches = programme.columns(most_launches).all
        images, sum_excess = programme.columns(batch * most_launches).all, programme.columns(batch * most_launches).all
        none, nothing = np.zeros(len(each)), np.zeros(len(pairs))
        programme.rows(nothing, (pairs, low, 1), (pairs, excess, 1), (pairs, launches[pair_interval], -1))
        programme.rows(none, (pair_interval, low, 1), (pair_interval, excess, 1), (each, images, -1))
        programme.rows(none, (pair_interval, excess, 1), (each, sum_excess, -1))
        programme.rows(none, (each, launches, 1), (each, images, -1))
        programme.rows(none, (each, images, 1), (each, launches, -batch))
        for num_present in np.unique(intervals.num_present[intervals.num_present > 0]):
            where = np.flatnonzero(intervals.num_present == num_present)
            row = np.arange(len(where))
            for plane in self._planes_of(int(num_present)):
                programme.rows(
                    lengths_ms[where],
                    (row, launches[where], plane.launch_ms),
                    (row, images[where], plane.image_ms),
                    (row, sum_excess[where], plane.excess_ms),
                )
        return low, excess

    def _requests(
        self, programme: Programme, intervals: _Intervals, count: int, low: Integers, excess: Integers
    ) -> None:
        """What each request's steps are worth."""
        each, none, of = np.arange(count), np.zeros(count), intervals.request
        share = 1 / self._setting.num_steps
        done, mean_excess = programme.columns(np.ones(count)).all, programme.columns(np.ones(count)).all
        worth = programme.columns(np.full(count, self._quality.at(self._setting.full_level)), gain=1.0).all
        programme.rows(none, (each, done, 1), (of, low, -share), (of, excess, -share))
        programme.rows(none, (each, mean_excess, 1), (of, excess, -share))
        programme.rows(none, (each, mean_excess, 1), (each, done, -1))
        most = (
            self._quality.late
        )  # times as much as on average: so much no step weighs more, see `plans.changed_levels`
        for intercept, slope in _pieces(self._setting, self._quality):
            programme.rows(none, (each, worth, 1), (each, done, -intercept), (each, mean_excess, -most * slope))

    @cached_property
    def _shortest_launch_ms(self) -> float:
        return min(min(self._setting.row_ms(level)[1:]) for level in self._setting.levels)

    def _planes_of(self, num_present: int) -> tuple[Plane, ...]:
        """For a launch among so many requests; rounded up to a measured batch, which only loosens the bound."""
        batches = self._setting.table.batches
        most = next((batch for batch in batches if batch >= num_present), batches[-1])
        if most not in self._planes:
            self._planes[most] = cost_planes(self._setting, most)
        return self._planes[most]


def _intervals(demands: Sequence[Demand], overhead_s: float) -> _Intervals:
    arrived_ms = np.array([1000 * demand.arrived_s for demand in demands])
    due_ms = np.maximum(arrived_ms, [1000 * (demand.deadline_s - overhead_s) for demand in demands])
    events = np.unique(np.concatenate([arrived_ms, due_ms]))
    present = [
        np.arange(first, last)
        for first, last in zip(np.searchsorted(events, arrived_ms), np.searchsorted(events, due_ms), strict=True)
    ]
    return _Intervals(
        lengths_ms=np.diff(events),
        request=np.repeat(np.arange(len(demands)), [len(span) for span in present]),
        interval=np.concatenate(present),
    )


def _pieces(setting: Setting, quality: QualityTable) -> list[tuple[float, float]]:
    """(quality at excess 0, rise over the whole excess) of the line through each piece; concave, so each is above."""
    lowest, full = setting.levels[0], setting.full_level
    if lowest == full:
        return [(quality.at(lowest), 0.0)]
    grid = sorted({lowest, full, *(level for level in quality.levels if lowest < level < full)})
    pieces = []
    for low, high in pairwise(grid):
        slope = (quality.at(high) - quality.at(low)) / (high - low)
        pieces.append((quality.at(low) - slope * (low - lowest), slope * (full - lowest)))
    return pieces
