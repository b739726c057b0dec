"""Whether a newcomer is worth what it takes: from those who are promised, and from those who are expected meanwhile.

A plan at the lowest levels says when everybody would end. What it leaves until they must have ended is time for better
levels: the *room* says how many times as long as in the plan steps may take at which time of it. From that follows
what pictures are expected to be worth, with the newcomer and without. Nothing here fits one cost table or one curve.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.plan import ROUNDING_S, Certificate, plan
from elit_serve.scheduler.policy.price import Rates
from elit_serve.scheduler.policy.promises import plan_with_slack
from elit_serve.scheduler.policy.view import View

HALVINGS = 5  # of the interval in which the largest slowdown of a plan is searched


class Room(NamedTuple):
    """How many times as long as in a plan steps may take from one time of it to another."""

    from_s: float
    until_s: float
    times: float


class Slower(NamedTuple):
    """A plan in which every step may take longer than it must.

    It is only looked at: those who share a launch at one level may need several at lower ones, and take longer then.

    times: as long as at the lowest level; at_level: as much of it as is for the level at which all are planned. The
    seconds of the plan are of that level.
    """

    times: float
    at_level: float
    plan: Certificate


class Slowest:
    """Finds the plan of some works in which all steps may take longest.

    They are planned at the highest level that so much longer affords, and what is more is added to every step: how much
    longer a level takes depends on the batch, and the plan says which batches there are.

    works: in order of their deadlines. slowdown: as in `promises.plan_for`, on top.
    """

    def __init__(self, works: Sequence[Work], view: View, rates: Rates, slowdown: float = 1.0) -> None:
        self._works, self._view, self._rates, self._slowdown = works, view, rates, slowdown
        self._at_levels: dict[int, list[Work]] = {}

    def find(self, most: float, known: float = 1.0) -> Slower | None:
        """most: times as long, which are looked for. known: at how many there is a plan, or else there is none."""
        found = self._slower(most)
        if found is not None:
            return found
        found = self._slower(known)
        if found is None:
            return None
        low, high = known, most
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            slower = self._slower(middle)
            if slower is None:
                high = middle
            else:
                low, found = middle, slower
        return found

    def _slower(self, times: float) -> Slower | None:
        view = self._view
        level, at_level = self._rates.level_within(times)
        works = self._at_levels.get(level)
        if works is None:
            works = self._at_levels[level] = [work.raised(level, view.costs) for work in self._works]
        correction = self._slowdown * times / at_level * view.costs.correction
        found = plan(works, view.start_s, max_batch=view.max_batch, correction=correction)
        if found is None:
            return None
        return Slower(times, at_level, found.copy({work.request_id: work for work in self._works}))


def rooms(slower: Slower, view: View, most: float) -> list[Room]:
    """How the time that a plan leaves is best spread, until the end of all times.

    Quality is concave in time, so it is spread evenly as far as deadlines let it: the tightest one decides until then,
    the next tightest from then on (a lower convex hull), and nowhere is it more than `most`.
    """
    spans = slower.plan.spans()
    ends = sorted((end_s, (work.due_s - view.start_s) / view.costs.correction) for work, _, end_s in spans)
    found: list[Room] = []
    now_s = used_s = 0.0
    while ends := [(end_s, due_s) for end_s, due_s in ends if end_s > now_s]:
        times, until_s = min(((due_s - used_s) / (end_s - now_s), end_s) for end_s, due_s in ends)
        times = max(1.0, times)  # so it was planned, but for rounding
        if times * slower.at_level >= most:
            break
        found.append(Room(now_s, until_s, times * slower.at_level))
        used_s += times * (until_s - now_s)
        now_s = until_s
    return [*found, Room(now_s, inf, most)]


class Expected:
    """What pictures are expected to be worth whose steps are spread over a time of a plan. abreast: see `abreast`."""

    def __init__(self, within: Sequence[Room], rates: Rates, abreast: float) -> None:
        self._within, self._rates, self._abreast = within, rates, abreast
        self._worths: dict[tuple[int, int] | None, list[float]] = {}

    def quality(self, from_s: float, until_s: float, bounds: tuple[int, int] | None = None) -> float:
        """The mean over that time; bounds: the lowest and the highest level that steps may run at."""
        worths = self._worths.get(bounds)
        if worths is None:
            worths = [self._rates.worth_within(room.times, bounds, self._abreast) for room in self._within]
            self._worths[bounds] = worths
        until_s, total = max(until_s, from_s + ROUNDING_S), 0.0
        for (begin_s, end_s, _), worth in zip(self._within, worths, strict=True):
            if begin_s < until_s and end_s > from_s:
                total += (min(end_s, until_s) - max(begin_s, from_s)) * worth
        return total / (until_s - from_s)

    def of_all(self, plan: Certificate) -> float:
        """The sum over what is left of everybody's pictures."""
        return sum(
            [
                self._rates.worth_left(work) * self.quality(begins_s, ends_s, (work.lowest, work.highest))
                for work, begins_s, ends_s in plan.spans()
            ]
        )


def abreast(works: Sequence[Work]) -> float:
    """How much these are at one place of their grids: 1 less the variance of their places over that of places which are
    spread evenly, and at least 0. Those of a burst can all have low levels early and high ones late; among those who
    are at all places one level must do for early and late steps.
    """
    places = [work.at / work.num_steps for work in works]
    mean = sum(places) / len(places)
    return max(0.0, 1 - 12 * sum([(place - mean) ** 2 for place in places]) / len(places))


def admissible(
    newcomers: Sequence[Work],
    promised: Sequence[Work],
    together: Sequence[Work],
    view: View,
    rates: Rates,
    *,
    slowdown: float,
    urgent_rate: float,
    images_per_s: float,
) -> Certificate | None:
    """A plan for all, if there is one and the newcomers are worth it, or None.

    They are if what is expected of everybody's pictures is at least what is expected of the others without them, and
    what those lose who are expected to come until then. Time that nobody here would keep, as others come for it, is no
    loss, see `_within_reach`.

    together: newcomers and promised, in order of deadlines. slowdown: of newcomers of the batch class, as in
    `promises.plan_for`. urgent_rate: work that is expected to come and cannot wait, in seconds of the table.
    images_per_s: that are expected to come, urgent or not.
    """
    kept = plan_with_slack(together, view.start_s, view, slowdown)
    if kept is None or not promised:
        return kept
    most = _within_reach(newcomers[0], view, rates, images_per_s)
    found = Slowest(together, view, rates, slowdown).find(most)
    if found is None:
        return None
    if found.times >= most:
        return kept
    alone = Slowest(promised, view, rates)
    before = alone.find(most, known=found.times) or alone.find(most)
    if before is None:
        return kept  # there is no plan without them either, so nothing is taken from anybody
    share = abreast(together)
    with_them = Expected(rooms(found, view, most), rates, share)
    without = Expected(rooms(before, view, most), rates, share)
    gain = with_them.of_all(found.plan) - without.of_all(before.plan)
    ends_s = max(end_s for work, _, end_s in found.plan.spans() if work in newcomers)
    lost = max(0.0, without.quality(0.0, ends_s) - with_them.quality(0.0, ends_s))
    coming_s = urgent_rate * (max(work.due_s for work in newcomers) - view.now_s)
    return kept if gain >= coming_s / newcomers[0].solo_s * lost else None


def _within_reach(newcomer: Work, view: View, rates: Rates, images_per_s: float) -> float:
    """How many times as long as at the lowest level images can be expected to take, however late they are due.

    They share the device with those who come meanwhile. If as many come as lately have, each like the newcomer, all can
    take no longer than so that they get through; what is more for those who are promised now is gone by then. If the
    level with the most quality per second takes longer, some of those who come are refused instead.
    """
    busy = images_per_s * newcomer.left * rates.least_s * view.costs.correction
    through = 1 / busy if busy > 0 else inf
    return min(rates.longest, max(through, rates.best_s / rates.least_s))
