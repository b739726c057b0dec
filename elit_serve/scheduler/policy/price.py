"""What a second of the device is worth: the quality that pictures would gain from one more."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import ceil, inf, log
from statistics import fmean

from elit_serve.plans.changed_levels import weight_until
from elit_serve.plans.coarsening import Coarsening
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.mixing import Mixing
from elit_serve.scheduler.policy.pace import Ladder, Work
from elit_serve.scheduler.policy.strides import Strides
from elit_serve.scheduler.quality import QualityTable, StepWeights

PLACES = 8  # of a grid at which is looked for what a picture takes at a price
DEARER = 1.25  # the prices that are looked at are whole powers of this
PRICES = 48  # so many, down to a 36,000th of the highest


class Rates:
    """What a step costs an image in a batch, at each level and by the table, and what quality that buys.

    coarsening: of the image's plan; None where no step may become longer.
    best_s: of each longest step (see `Work`) at the level and stride with the most quality per second. throughput: work
    (as `Work.solo_s`) done there per second.
    """

    def __init__(
        self,
        quality: QualityTable,
        costs: CorrectedCosts,
        batch: int,
        ladder: Ladder,
        coarsening: Coarsening | None = None,
    ) -> None:
        self._quality, self._costs, self._ladder = quality, costs, ladder
        self._rows_s = {level: costs.row_s(ladder.at(level)) for level in costs.levels}
        self.cost_s = {level: row_s[batch] / batch for level, row_s in self._rows_s.items()}
        self._worths = {level: quality.at(level) for level in costs.levels}
        self._in_mixes: dict[tuple[int, int], list[tuple[int, float]]] = {}
        self._lowest, self._highest = costs.levels[0], costs.levels[-1]
        width = max(self._highest - self._lowest, 1)
        self._slope_s = (self.cost_s[self._highest] - self.cost_s[self._lowest]) / width
        self._strides = None if coarsening is None else Strides(coarsening)
        self._most, self.best_s = max(self._throughout())
        self.throughput = self._rows_s[self._lowest][1] / self.best_s
        self._expected = None if self._strides is None else self._expectation(late=1)
        self._late_high = None if quality.late == 1 else self._expectation(quality.late)

    def worth(self, level: int) -> float:
        """As `QualityTable.at`."""
        found = self._worths.get(level)
        return self._quality.at(level) if found is None else found

    def worth_left(self, work: Work) -> float:
        """The share of a picture's worth that the steps decide which are left."""
        return 1 - weight_until(work.at / work.num_steps, self._quality.late)

    def in_mix(self, mixing: Mixing, bounds: tuple[int, int]) -> list[tuple[int, float]]:
        """For each level that is wished for a member with these bounds: its unit in a key, and its worth.

        mixing: of the ladder of these.
        """
        found = self._in_mixes.get(bounds)
        if found is None:
            found = [(mixing.unit(level), self.worth(level)) for level in mixing.nearest(*bounds)]
            self._in_mixes[bounds] = found
        return found

    @property
    def least_s(self) -> float:
        """An image's share of a step at the lowest level."""
        return self.cost_s[self._lowest]

    @property
    def longest(self) -> float:
        """How many times as long as with the fewest steps at the lowest level an image can usefully take."""
        most_s = self.cost_s[self._highest] if self._expected is None else self._expected.most_s
        return max(1.0, most_s / self.cost_s[self._lowest])

    def level_within(self, times: float) -> tuple[int, float]:
        """The highest level that takes an image no more than so many times what the lowest takes, and how many."""
        lowest_s = self.cost_s[self._lowest]
        taken = ((level, cost_s / lowest_s) for level, cost_s in self.cost_s.items() if cost_s <= times * lowest_s)
        level, times = max(taken, default=(self._lowest, 1.0))
        return level, max(1.0, times)

    def worth_within(self, times: float, bounds: tuple[int, int] | None = None, abreast: float = 0.0) -> float:
        """What is expected of an image that takes so many times as long as with the fewest steps at the lowest level:
        linear between levels, and where steps may become longer, with the best strides at that price.

        bounds: the lowest and the highest level; None are the table's. abreast: how much all are at one place of their
        grids, from 0 to 1, where late steps that weigh more can have higher levels than early ones.
        """
        levels = self._costs.levels_within(*(bounds or (self._lowest, self._highest)))
        if len(levels) == 1:
            return self.worth(levels[0])  # the only one that may be, and perhaps none of the table's
        apart = self._worth_within(times, levels, self._expected)
        if self._late_high is None or not abreast:
            return apart
        return apart + abreast * (self._worth_within(times, levels, self._late_high) - apart)

    def _worth_within(self, times: float, levels: Sequence[int], expected: Expectation | None) -> float:
        within_s = times * self.cost_s[levels[0]]
        if expected is not None:
            return min(expected.worth(within_s), self.worth(levels[-1]))
        for below, level in pairwise(levels):
            low_s, high_s = self.cost_s[below], self.cost_s[level]
            if within_s < high_s:
                share = (within_s - low_s) / (high_s - low_s)
                return self.worth(below) + share * (self.worth(level) - self.worth(below))
        return self.worth(levels[-1])

    def best_level(self, levels: Sequence[int], price: float) -> int:
        """The one with the most quality less what it costs an image at this price."""
        if len(levels) == 1:
            return levels[0]  # the only one that may be, and perhaps none of the table's
        worths, cost_s = self._worths, self.cost_s
        gains = [worths[level] - price * cost_s[level] for level in levels]
        return levels[gains.index(max(gains))]

    def best_strides(self, level: int, price: float) -> Sequence[int]:
        """That of a step at this level and price, for every place of the grid."""
        assert self._strides is not None
        cost_s = self.cost_s.get(level) or self.row_s(level)[1]
        return self._strides.everywhere(level, price * cost_s / self.worth(level))

    def mean_stride(self, price: float) -> float:
        """Of the steps of a whole picture that is made at this price."""
        return 1.0 if self._expected is None else self._expected.mean_stride(price)

    def row_s(self, level: int) -> tuple[float, ...]:
        """As `CorrectedCosts.row_s`, at any level."""
        return self._rows_s.get(level) or self._costs.row_s(self._ladder.at(level))

    @property
    def top_price(self) -> float:
        """From which on the highest level is worth less than those below."""
        return self._quality.slope(self._highest) / self._slope_s if self._slope_s > 0 else 0.0

    def price(self, affordable_s: float) -> float:
        """Quality per second of the table: what the level that can be afforded for all would gain from more. Where
        steps may become longer, the price at which pictures take what can be afforded for each longest step.

        All steps count alike here: launches mostly hold pictures at all places.
        """
        if self._expected is not None:
            return self._expected.price(affordable_s)
        if self._slope_s <= 0:
            return 0.0
        lowest_s, highest_s = self.cost_s[self._lowest], self.cost_s[self._highest]
        if affordable_s >= highest_s:
            return min(self._most, self.top_price * (highest_s / affordable_s) ** 2)
        slope = self._quality.slope(self._lowest + max(0.0, affordable_s - lowest_s) / self._slope_s)
        return min(self._most, slope / self._slope_s)

    def _throughout(self) -> list[tuple[float, float]]:
        """(quality per second, seconds of a longest step) at every level and with every stride throughout."""
        if self._strides is None:
            return [(self._worths[level] / cost_s, cost_s) for level, cost_s in self.cost_s.items()]
        found, longest = [], self._strides.longest
        for level, cost_s in self.cost_s.items():
            for stride, loss in enumerate(self._strides.losses(level)[1:], 1):
                found.append((self._worths[level] * (1 - loss) * stride / cost_s, longest * cost_s / stride))
        return found

    def _expectation(self, late: float) -> Expectation:
        """With the best level and stride at every place and price. late: see `QualityTable.late`."""
        strides = self._strides
        density = [1.0] * PLACES if strides is None else strides.density
        num_places = min(PLACES, len(density))
        middles = [density[(2 * place + 1) * len(density) // (2 * num_places)] for place in range(num_places)]
        weights = StepWeights(late)[num_places]
        longest = 1 if strides is None else strides.longest
        highest = ceil(log(late * self._most, DEARER))
        takes_s, mean_strides, worths = [], [], []
        for power in range(highest - PRICES + 1, highest + 1):
            found = [self._best(DEARER**power, *place) for place in zip(middles, weights, strict=True)]
            takes_s.append(longest * fmean(cost_s / stride for cost_s, stride, _ in found))
            mean_strides.append(1 / fmean(1 / stride for _, stride, _ in found))
            worths.append(fmean(worth for _, _, worth in found))
        return Expectation(highest, takes_s, mean_strides, worths)

    def _best(self, price: float, density: float, weight: float) -> tuple[float, int, float]:
        """(seconds, stride, worth) of the best step at a place of this density that weighs so much."""
        best, found, strides = -inf, (0.0, 1, 0.0), self._strides
        for level, cost_s in self.cost_s.items():
            worth, stride, loss = self._worths[level], 1, 0.0
            if strides is not None:
                stride = strides.best(level, price * cost_s / worth, density)
                loss = strides.losses(level)[stride]
            kept = worth * (weight - density * loss)
            gain = kept - price * cost_s / stride
            if gain > best:
                best, found = gain, (cost_s, stride, kept)
        return found


class Expectation:
    """What a whole picture takes at each of `PRICES`, the lowest first.

    highest: the power of `DEARER` that the last price is. takes_s: in the mean for each longest step. mean_strides: of
    its steps. worths: what it is worth.
    """

    def __init__(
        self, highest: int, takes_s: Sequence[float], mean_strides: Sequence[float], worths: Sequence[float]
    ) -> None:
        self._lowest = highest - PRICES + 1
        self._takes_s = list(accumulate(reversed(takes_s), max))[::-1]
        self._mean_strides = mean_strides
        self._worths = worths

    @property
    def most_s(self) -> float:
        """Taken at the lowest price."""
        return self._takes_s[0]

    def worth(self, affordable_s: float) -> float:
        """Of a picture that takes so much for each longest step."""
        takes_s, worths = self._takes_s, self._worths
        index = bisect_left(takes_s, -affordable_s, key=_negative)
        if index in (0, PRICES):
            return worths[min(index, PRICES - 1)]
        less_s, more_s = takes_s[index], takes_s[index - 1]
        return worths[index] + (affordable_s - less_s) / (more_s - less_s) * (worths[index - 1] - worths[index])

    def price(self, affordable_s: float) -> float:
        """At which so much is taken: between those that were looked at. Below all of them as for the level alone, which
        falls with the square of what can be afforded more than is taken."""
        takes_s = self._takes_s
        if affordable_s >= takes_s[0]:
            return float(DEARER**self._lowest * (takes_s[0] / affordable_s) ** 2)
        index = bisect_left(takes_s, -affordable_s, key=_negative)
        if index == PRICES:
            return float(DEARER ** (self._lowest + PRICES - 1))
        less_s, more_s = takes_s[index], takes_s[index - 1]
        return float(DEARER ** (self._lowest + index - (affordable_s - less_s) / (more_s - less_s)))

    def mean_stride(self, price: float) -> float:
        """At this price, or the next that was looked at."""
        place = ceil(log(price, DEARER)) - self._lowest
        return self._mean_strides[min(max(place, 0), PRICES - 1)]


def _negative(seconds: float) -> float:
    return -seconds
