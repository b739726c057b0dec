"""Which steps of several levels share a launch: the cheapest way to run so many at each level.

A mixed launch runs members at levels of their own and costs what `StepKind.is_mixed` was measured to cost at the
highest of them. So those who run are cut into groups of neighbouring levels, a launch for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from elit_serve.plans.step_kind import StepKind

PLACE_BITS = 16  # of a count in a `Mixing.key`: no batch is larger
PLACE_MASK = (1 << PLACE_BITS) - 1
REMEMBERED = 2_000  # crowds of a ladder, so that a state stays short as text; forgotten all at once


class Mixing:
    """Of the steps of one shape and weak cap. All seconds are of the table.

    Fewer members never cost more, whatever was measured: plans rest on that.

    levels: at which steps can share launches, lowest first. known_s: what `seconds` has been asked for, by key.
    """

    def __init__(
        self, levels: Sequence[int], rows_s: Sequence[Sequence[float]], mixed_rows_s: Sequence[Sequence[float]]
    ) -> None:
        """rows_s, mixed_rows_s: of an unmixed launch at each of these levels and of a mixed one up to it, for every
        batch from 0. Where a lower level costs more than a mix with it, so does the mix."""
        self.levels = tuple(levels)
        self._units = {level: 1 << PLACE_BITS * place for place, level in enumerate(self.levels)}
        self._rows_s = [tuple(row) for row in rows_s]
        dearest = [tuple(map(max, *both)) for both in zip(rows_s, mixed_rows_s, strict=True)]
        self._mixed_rows_s = list(accumulate(dearest, lambda low, high: tuple(map(max, low, high))))
        self.known_s: dict[int, float] = {}
        self._known_groups: dict[tuple[int, int], tuple[int, int]] = {}
        self._nearest: dict[tuple[int, int], tuple[int, ...]] = {}

    def unit(self, level: int) -> int:
        """What one member at this level adds to a `key`."""
        return self._units[level]

    def nearest(self, low: int, high: int) -> tuple[int, ...]:
        """For each level that is wished for a member with these bounds, the nearest at which it may run: from below if
        there is one."""
        found = self._nearest.get((low, high))
        if found is None:
            within = [level for level in self.levels if low <= level <= high]
            nearest = (max([level for level in within if level <= wished], default=within[0]) for wished in self.levels)
            found = self._nearest[low, high] = tuple(nearest)
        return found

    def seconds(self, key: int) -> float:
        """What all launches of these members take."""
        seconds = self.known_s.get(key)
        if seconds is None:
            if len(self.known_s) >= REMEMBERED:
                self.known_s.clear()
            seconds = self.known_s[key] = self._cheapest(key)[0]
        return seconds

    def group_of(self, level: int, key: int) -> tuple[int, int]:
        """The lowest and the highest level that share a launch with this one of theirs."""
        group = self._known_groups.get((level, key))
        if group is None:
            if len(self._known_groups) >= REMEMBERED:
                self._known_groups.clear()
            _, present, firsts = self._cheapest(key)
            highest = len(present) - 1
            while self.levels[present[firsts[highest]]] > level:
                highest = firsts[highest] - 1
            group = self.levels[present[firsts[highest]]], self.levels[present[highest]]
            self._known_groups[level, key] = group
        return group

    def _cheapest(self, key: int) -> tuple[float, list[int], list[int]]:
        """Seconds, the places of the levels that are there, lowest first, and for each which of them begins the launch
        that it ends. The best cut of all levels below is known when the next is looked at."""
        best_s, present, counts, firsts = [0.0], list[int](), list[int](), list[int]()
        for place, row_s in enumerate(self._rows_s):
            count = number = key & PLACE_MASK
            key >>= PLACE_BITS
            if not count:
                continue
            least_s, least_first, mixed_row_s = best_s[-1] + row_s[count], len(counts), self._mixed_rows_s[place]
            for first in range(len(counts) - 1, -1, -1):
                number += counts[first]
                if (seconds := best_s[first] + mixed_row_s[number]) < least_s:
                    least_s, least_first = seconds, first
            present.append(place)
            counts.append(count)
            firsts.append(least_first)
            best_s.append(least_s)
        return best_s[-1], present, firsts


class Answering(NamedTuple):
    """Of images of a shape that end in one launch, by their number from 0 to the largest batch, in the table's seconds.

    decode_s: how long the device decodes them. late_s: how much later they are answered than one alone is.
    """

    decode_s: tuple[float, ...]
    late_s: tuple[float, ...]


class Rung:
    """Steps of one kind that are planned alike: what one launch of them costs, and whom they may share launches with.

    row_s: seconds of the table at every batch from 0. mixing: None where they share launches only with their kind.
    unit: in a key of that, or else in their number. answering: what decoding costs of those who end in one launch; None
    where nothing is known.
    """

    __slots__ = ("answering", "kind", "mixing", "row_s", "unit")

    def __init__(
        self,
        kind: StepKind,
        row_s: tuple[float, ...],
        mixing: Mixing | None = None,
        answering: Answering | None = None,
    ) -> None:
        self.kind, self.row_s, self.mixing, self.answering = kind, row_s, mixing, answering
        self.unit = 1 if mixing is None else mixing.unit(kind.level)
