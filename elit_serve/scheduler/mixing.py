"""Which steps of several levels share a launch: the cheapest way to run so many at each level.

A mixed launch runs members at levels of their own and costs what `StepKind.is_mixed` was measured to cost at the
highest of them. So those who run are cut into groups of neighbouring levels, a launch for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate

from elit_serve.plans.step_kind import StepKind

PLACE_BITS = 16  # of a count in a `Mixing.key`: no batch is larger
REMEMBERED = 20_000  # crowds of a ladder, some megabytes; forgotten all at once

Group = tuple[int, int]  # the lowest and the highest level of a launch


class Mixing:
    """Of the steps of one shape and weak cap. All seconds are of the table.

    Fewer members never cost more, whatever was measured: plans rest on that.

    levels: at which steps can share launches, lowest first.
    """

    def __init__(
        self, levels: Sequence[int], rows_s: Sequence[Sequence[float]], mixed_rows_s: Sequence[Sequence[float]]
    ) -> None:
        """rows_s, mixed_rows_s: of an unmixed launch at each of these levels and of a mixed one up to it, for every
        batch from 0. Where a lower level costs more than a mix with it, so does the mix."""
        self.levels = tuple(levels)
        self._rows_s = [tuple(row) for row in rows_s]
        dearest = [tuple(map(max, *both)) for both in zip(rows_s, mixed_rows_s, strict=True)]
        self._mixed_rows_s = list(accumulate(dearest, lambda low, high: tuple(map(max, low, high))))
        self._found: dict[int, tuple[float, tuple[Group, ...]]] = {0: (0.0, ())}

    def unit(self, level: int) -> int:
        """What one member at this level adds to a `key`."""
        return 1 << PLACE_BITS * self.levels.index(level)

    def key(self, levels: Iterable[int]) -> int:
        """Of members at these levels, in any order."""
        return sum(map(self.unit, levels))

    def seconds(self, key: int) -> float:
        """What all launches of these members take."""
        found = self._found.get(key)
        return self._look(key)[0] if found is None else found[0]

    def groups(self, key: int) -> tuple[Group, ...]:
        """The launches that take the least, lowest levels first."""
        found = self._found.get(key)
        return self._look(key)[1] if found is None else found[1]

    def _look(self, key: int) -> tuple[float, tuple[Group, ...]]:
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        found = self._found[key] = self._cheapest(key)
        return found

    def _cheapest(self, key: int) -> tuple[float, tuple[Group, ...]]:
        """The best cut of all levels below each, from the lowest up."""
        counts = [key >> PLACE_BITS * place & (1 << PLACE_BITS) - 1 for place in range(len(self.levels))]
        present = [place for place, count in enumerate(counts) if count]
        best: list[tuple[float, tuple[Group, ...]]] = [(0.0, ())]
        for last, place in enumerate(present):
            number, row_s, ways = 0, self._rows_s[place], []
            for first in range(last, -1, -1):
                number += counts[present[first]]
                group = self.levels[present[first]], self.levels[place]
                ways.append((best[first][0] + row_s[number], (*best[first][1], group)))
                row_s = self._mixed_rows_s[place]
            best.append(min(ways, key=_seconds))
        return best[-1]


def _seconds(way: tuple[float, tuple[Group, ...]]) -> float:
    return way[0]


class Rung:
    """Steps of one kind that are planned alike: what one launch of them costs, and whom they may share launches with.

    row_s: seconds of the table at every batch from 0. mixing: None where they share launches only with their kind.
    unit: in a key of that.
    """

    __slots__ = ("kind", "mixing", "row_s", "unit")

    def __init__(self, kind: StepKind, row_s: tuple[float, ...], mixing: Mixing | None = None) -> None:
        self.kind, self.row_s, self.mixing = kind, row_s, mixing
        self.unit = 0 if mixing is None else mixing.unit(kind.level)
