"""Who shares a launch, so that no promise falls behind the pace that it needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from math import inf

from elit_serve.scheduler.policy.pace import Work, paces_s
from elit_serve.scheduler.policy.price import Rates
from elit_serve.scheduler.policy.view import View


def at_pace(
    members: list[Work], levels: Sequence[int], price: float, rates: Rates, view: View, *, parking: float
) -> tuple[list[Work], int]:
    """Who stays of these, and the level: as low as it takes, or without as many who can wait, for no promise to fall
    behind its pace, whichever costs least.

    levels: from the lowest that may be to the one to begin with. parking: what it costs to leave somebody out who has
    no spare step; with l of them it is 1/(1 + l) of that. The first member is never left out.
    """
    step_s = rates.row_s(levels[-1])[len(members)]
    tightest_s = min(paces_s([work for work in members if work.is_promised], view), default=inf)
    if step_s <= tightest_s:
        return members, levels[-1]
    paces = paces_s(members, view)
    lax = sorted(range(1, len(members)), key=paces.__getitem__)
    others = [(paces[index], members[index].left) for index in lax]
    num_staying, level = _cheapest(others, levels, tightest_s, price, rates, parking)
    staying = [members[index] for index in (0, *sorted(lax[: num_staying - 1]))]
    return [work for work in staying if work.allows(level)], level


def _cheapest(
    others: Sequence[tuple[float, int]],
    levels: Sequence[int],
    within_s: float,
    price: float,
    rates: Rates,
    parking: float,
) -> tuple[int, int]:
    """How many stay, and the level, at which a launch takes no longer than this, and which costs least.

    Where somebody without a step to spare would be left out, no higher level is looked at. If that is the lowest one,
    it runs without those who can wait, however long it takes.

    others: (pace, steps left) of all but the first, the laxest last.
    """
    highest = levels[-1]
    least, best, found = inf, len(others) + 1, levels[0]
    for level in levels:
        row_s = rates.row_s(level)
        staying = bisect_right(row_s, within_s, 1, len(others) + 2) - 1
        if not staying:
            break
        step_s = row_s[staying]
        lost = staying * (rates.worth(highest) - rates.worth(level))
        cost = lost - price * (rates.row_s(highest)[staying] - step_s)
        for pace_s, left in others[staying - 1 :]:
            spare = (pace_s / step_s - 1) * left
            cost += parking / (1 + spare) if spare > 0 else inf
        if cost == inf:
            break
        if cost <= least:
            least, best, found = cost, staying, level
    if least == inf:
        while best > 1 and others[best - 2][0] > rates.row_s(found)[best] > within_s:
            best -= 1
    return best, found
