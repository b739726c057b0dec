"""The cost table as the device has lately shown it to be: observed over predicted, smoothed. Reads no clock."""

from __future__ import annotations

from copy import copy
from math import exp
from typing import Self

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.cost import CostTable

SMOOTHING_S = 1.5  # of device time: a lasting change is followed within a few times this, noise of single launches not
NOTICEABLE = 0.003  # the correction moves when the estimate has left it by more than this share
OUTLIER = 1.5  # one launch counts for at most this factor off the present estimate: a stall is no slower device
REST_S = 20.0  # of idle time, after which what was observed counts 1/e: three times too slow is forgotten in a minute


class CorrectedCosts:
    """Steps of a `CostTable` in seconds of the table, and the `correction` that turns those into the device's.

    Plans are made in seconds of the table, so that they outlive a correction.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self.correction = 1.0
        self._estimate = 1.0
        self._rows_s: dict[StepKind, tuple[float, ...]] = {}
        self._levels_within: dict[tuple[int, int], tuple[int, ...]] = {}

    def __deepcopy__(self, memo: object) -> Self:
        return copy(self)  # what is remembered of the table is true of both

    @property
    def levels(self) -> tuple[int, ...]:
        return self.table.levels

    @property
    def overhead_s(self) -> float:
        return self.table.overhead_ms / 1000

    def row_s(self, kind: StepKind) -> tuple[float, ...]:
        """Seconds of one step by the table, uncorrected, at every batch from 0 to the table's largest."""
        row = self._rows_s.get(kind)
        if row is None:
            row = self._rows_s[kind] = tuple(step_ms / 1000 for step_ms in self.table.row(kind))
        return row

    def observe(self, table_ms: float, observed_ms: float) -> None:
        """A launch took `observed_ms` where the uncorrected table says `table_ms`."""
        ratio = observed_ms / table_ms
        ratio = min(max(ratio, self._estimate / OUTLIER), self._estimate * OUTLIER)
        weight = 1 - exp(-table_ms / 1000 / SMOOTHING_S)
        self._estimate += weight * (ratio - self._estimate)
        if abs(self._estimate / self.correction - 1) > NOTICEABLE:
            self.correction = self._estimate

    def rest(self, idle_s: float) -> None:
        """Nothing ran for so long. What slowed the device down may have gone meanwhile, and nobody would ever find out
        if too high a correction had every request refused: the table is trusted again, little by little."""
        self._estimate = self.correction = 1 + (self._estimate - 1) * exp(-idle_s / REST_S)

    def levels_within(self, low: int, high: int) -> tuple[int, ...]:
        """The table's levels within these bounds; `low` itself if there are none."""
        levels = self._levels_within.get((low, high))
        if levels is None:
            levels = tuple(level for level in self.levels if low <= level <= high) or (low,)
            self._levels_within[low, high] = levels
        return levels
