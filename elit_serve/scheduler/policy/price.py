"""What a second of the device is worth: the quality that the level which can be afforded would gain from more."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.policy.pace import Ladder
from elit_serve.scheduler.quality import QualityTable


class Rates:
    """What a step costs an image in a batch, at each level and by the table, and what quality that buys.

    best_s: at the level with the most quality per second. throughput: work (as `Work.solo_s`) done there per second.
    """

    def __init__(self, quality: QualityTable, costs: CorrectedCosts, batch: int, ladder: Ladder) -> None:
        self._quality, self._costs, self._ladder = quality, costs, ladder
        self._rows_s = {level: costs.row_s(ladder.at(level)) for level in costs.levels}
        self.cost_s = {level: row_s[batch] / batch for level, row_s in self._rows_s.items()}
        self._worths = {level: quality.at(level) for level in costs.levels}
        self._lowest, self._highest = costs.levels[0], costs.levels[-1]
        width = max(self._highest - self._lowest, 1)
        self._slope_s = (self.cost_s[self._highest] - self.cost_s[self._lowest]) / width
        self._most, self.best_s = max((quality.at(level) / cost_s, cost_s) for level, cost_s in self.cost_s.items())
        self.throughput = self._rows_s[self._lowest][1] / self.best_s

    def worth(self, level: int) -> float:
        """As `QualityTable.at`."""
        found = self._worths.get(level)
        return self._quality.at(level) if found is None else found

    def best_level(self, levels: Sequence[int], price: float) -> int:
        """The one with the most quality less what it costs an image at this price."""
        if len(levels) == 1:
            return levels[0]  # the only one that may be, and perhaps none of the table's
        worths, cost_s = self._worths, self.cost_s
        gains = [worths[level] - price * cost_s[level] for level in levels]
        return levels[gains.index(max(gains))]

    def row_s(self, level: int) -> tuple[float, ...]:
        """As `CorrectedCosts.row_s`, at any level."""
        return self._rows_s.get(level) or self._costs.row_s(self._ladder.at(level))

    def price(self, affordable_s: float) -> float:
        """Quality per second of the table: what the level that can be afforded for all would gain from more."""
        if self._slope_s <= 0:
            return 0.0
        lowest_s, highest_s = self.cost_s[self._lowest], self.cost_s[self._highest]
        if affordable_s >= highest_s:
            slope = self._quality.slope(self._highest) * (highest_s / affordable_s) ** 2
        else:
            slope = self._quality.slope(self._lowest + max(0.0, affordable_s - lowest_s) / self._slope_s)
        return min(self._most, slope / self._slope_s)
