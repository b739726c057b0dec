"""Who shares a launch, and at which levels, so that no promise falls behind the pace that it needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.mixing import Mixing
from elit_serve.scheduler.policy.pace import Ladder, Work, paces_s
from elit_serve.scheduler.policy.price import Rates
from elit_serve.scheduler.policy.view import View

Other = tuple[float, int, int, int]  # a member but the first: its pace, place, steps left and lowest level


@dataclass(slots=True)
class Cohort:
    """Members of one launch, in order, and the level that is wished for them.

    ladder: of their steps. bounds: the lowest and the highest level of each, where not all may run at any level that is
    wished: they run at the nearest that they may. Empty where all may. distinct: each of them once. known: the nearest
    of each to the levels that have been asked for.
    """

    members: list[Work]
    level: int
    ladder: Ladder
    rates: Rates
    costs: CorrectedCosts
    bounds: list[tuple[int, int]] = field(default_factory=list)
    distinct: set[tuple[int, int]] = field(default_factory=set)
    known: dict[int, dict[tuple[int, int], int]] = field(default_factory=dict)

    def levels(self, wished: int) -> list[int]:
        """Of all members, if this one is wished for them."""
        if not self.bounds:
            return [wished] * len(self.members)
        nearest = self._nearest(wished)
        return [nearest[each] for each in self.bounds]

    def row_s(self, wished: int, top: int | None = None) -> tuple[float, ...]:
        """Seconds of such a launch, as `CorrectedCosts.row_s`. top: without those who run at a higher level."""
        if not self.bounds:
            return self.rates.row_s(wished)
        levels: Collection[int] = self._nearest(wished).values()
        if top is not None:
            levels = [level for level in levels if level <= top]
        return self.costs.row_s(self.ladder.across(levels))

    def step_s(self, wished: int) -> float:
        return self.row_s(wished)[len(self.members)]

    def levels_up_to(self, wished: int) -> tuple[int, ...]:
        """That may be wished, lowest first."""
        if self.bounds:
            return self.costs.levels_within(min(self.distinct)[0], wished)
        return self.costs.levels_within(max([work.lowest for work in self.members]), wished)

    def only(self, staying: Sequence[int]) -> None:
        """Leaves the others out. staying: places of members."""
        self.members = [self.members[place] for place in staying]
        self.bounds = [self.bounds[place] for place in staying] if self.bounds else []
        self.distinct, self.known = set(self.bounds), {}

    def _nearest(self, wished: int) -> dict[tuple[int, int], int]:
        """By the bounds."""
        nearest = self.known.get(wished)
        if nearest is None:
            nearest = {each: self.costs.nearest_level(wished, *each) for each in self.distinct}
            self.known[wished] = nearest
        return nearest


class Mix:
    """The next step of a crowd of one ladder, in the launches that take the least: for each level, if that is wished
    for all and everybody runs at the nearest that they may.

    bounds: how many of the crowd have each. least_s: what it takes at the lowest levels, by the table.
    """

    def __init__(self, bounds: Mapping[tuple[int, int], int], mixing: Mixing, rates: Rates) -> None:
        self._bounds, self._mixing, self._rates = bounds, mixing, rates
        keys, worths = [0] * len(mixing.levels), [0.0] * len(mixing.levels)
        for each, count in bounds.items():
            for place, (unit, worth) in enumerate(rates.in_mix(mixing, each)):
                keys[place] += count * unit
                worths[place] += count * worth
        self._keys, self._worths = keys, worths
        self.least_s = mixing.seconds(keys[0])

    def is_of(self, bounds: Mapping[tuple[int, int], int], mixing: Mixing, rates: Rates) -> bool:
        """Whether it was made of these."""
        return self._mixing is mixing and self._rates is rates and self._bounds == bounds

    def cohort(self, crowd: Sequence[Work], price: float, costs: CorrectedCosts) -> Cohort:
        """Those who go with the first at the level that is best for all at this price of a second of the table."""
        mixing = self._mixing
        gains = [worth - price * mixing.seconds(key) for worth, key in zip(self._worths, self._keys, strict=True)]
        place = gains.index(max(gains))
        wished, first = mixing.levels[place], crowd[0]
        nearest = {each: mixing.nearest(*each)[place] for each in self._bounds}
        lowest, highest = mixing.group_of(nearest[first.bounds], self._keys[place])
        going = {each: level for each, level in nearest.items() if lowest <= level <= highest}
        members = [work for work in crowd if work.bounds in going]
        bounds = [work.bounds for work in members]
        return Cohort(members, wished, first.ladder, self._rates, costs, bounds, set(going), {wished: going})


def keep_pace(cohort: Cohort, levels: Sequence[int], price: float, view: View, *, parking: float) -> None:
    """Lowers the level as far as it takes, or leaves out as many who can wait, for no promise to fall behind its pace,
    whichever costs least: in quality, and in time at `price`, since few in a launch take longer each.

    levels: from the lowest that may be to the one that is wished. parking: what it costs besides to leave somebody out
    who has no spare step; with l of them it is 1/(1 + l) of that. Those with the most are left out, never the first.
    """
    members = cohort.members
    every_s = paces_s(members, view)
    tightest_s = min([pace_s for pace_s, work in zip(every_s, members, strict=True) if work.is_promised], default=inf)
    if cohort.step_s(cohort.level) <= tightest_s:
        return
    paces = enumerate(zip(every_s, members, strict=True))
    others = [(pace_s, place, work.left, work.lowest) for place, (pace_s, work) in paces if place]
    staying, cohort.level = _cheapest(cohort, others, levels, tightest_s, price, parking)
    cohort.only([0, *sorted(staying)])


def _cheapest(
    cohort: Cohort, others: list[Other], levels: Sequence[int], within_s: float, price: float, parking: float
) -> tuple[list[int], int]:
    """The places of those who stay, and the level, at which a launch takes no longer than this, and which costs least.
    Where some need a higher level than the others, both is looked at: with them, and without.

    Nobody is left out who has no step to spare. If there is no other way, it runs at the lowest level without those who
    can wait, however long it takes.

    others: all but the first.
    """
    rates, first, highest = cohort.rates, cohort.members[0], levels[-1]
    needed = max([lowest for _, _, _, lowest in others], default=0)
    launches = [(level, max(level, first.lowest)) for level in levels]
    num_all = len(others) + 1
    share_s = cohort.row_s(*launches[-1])[num_all] / num_all
    if cohort.bounds and needed > launches[-1][1]:
        launches.append((highest, needed))
    least, best, found = inf, list[int](), levels[0]
    lowests = sorted([lowest for _, _, _, lowest in others])
    for level, top in reversed(launches):
        row_s = cohort.row_s(level, top)
        num_staying = bisect_right(row_s, within_s, 1, bisect_right(lowests, top) + 2) - 1
        if not num_staying:
            continue
        step_s = row_s[num_staying]
        lost = num_staying * (rates.worth(highest) - rates.worth(level))
        cost = lost + price * (step_s - num_staying * share_s)
        if cost >= least:
            continue  # dearer already without those it leaves out
        by_spare = sorted([(low > top, (pace_s / step_s - 1) * left, place) for pace_s, place, left, low in others])
        spare = [steps for _, steps, _ in by_spare[num_staying - 1 :]]
        if min(spare, default=inf) <= 0:
            continue  # one of them cannot wait
        cost = sum([parking / (1 + steps) for steps in spare], cost)
        if cost < least:
            least, best, found = cost, [place for _, _, place in by_spare[: num_staying - 1]], level
    if least == inf:
        best = _without_who_can_wait(cohort, others, found, within_s)
    return best, found


def _without_who_can_wait(cohort: Cohort, others: list[Other], level: int, within_s: float) -> list[int]:
    """The places of those who stay at this level where no launch is short enough: of those who cannot wait for it."""
    staying = sorted(others if cohort.bounds else [other for other in others if other[-1] <= level])
    row_s = cohort.row_s(level)
    while staying and staying[-1][0] > row_s[len(staying) + 1] > within_s:
        staying.pop()
    return [place for _, place, _, _ in staying]
