"""The elastic policy: one level per launch and a stride for each member, chosen anew at every step, behind a plan that
keeps every promise.

Promises: a request with a hard deadline is taken only if a certificate exists, a plan at the lowest allowed levels and
with the fewest steps in which it and everything promised before is in time. A launch is run only if a certificate
exists for what follows it; otherwise the certificate itself says what to run. So a promise holds as long as predictions
do.

Quality: see `wishes`.

Requests with soft deadlines take part in the order and in the price, not in the certificate.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from math import inf
from operator import attrgetter
from typing import Self

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.arrivals import RecentArrivals
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.policy.admission import admissible
from elit_serve.scheduler.policy.cohort import Cohort
from elit_serve.scheduler.policy.granting import advance, granted_level, longest_strides
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.plan import Certificate
from elit_serve.scheduler.policy.promises import Promises, plan_for
from elit_serve.scheduler.policy.rounds import first_launch
from elit_serve.scheduler.policy.view import Choice, Owed, View
from elit_serve.scheduler.policy.wishes import Wishes
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand, Priority, Refusal
from elit_serve.scheduler.state import Tracked

PROBE_ABOVE = 1.5  # where the correction exceeds this, a request that it alone refuses is taken now and then
PROBE_PAUSE_S = 10.0  # so often at most, and only while nothing else is there

_order = attrgetter("order")


@dataclass(frozen=True, kw_only=True)
class ElasticSettings:
    """The constants of the policy.

    margin: how much a step alone at the full level may take longer than predicted, in standard deviations that the
        device has lately shown. Plans have it to spare for all steps that are left, see `Work`, a last step for itself,
        and a launch a part of it for the next, see `promises.reserve_s`. A promise keeps the margin that it was given
        with.
    batch_reserve: share of the device kept for interactive work: hard requests of the batch class are admitted as if
        every step took 1 / (1 - batch_reserve) times as long.
    ageing_s: soft work of the batch class goes as if its deadline were so much later.
    soft_yield: soft work that is overdue goes behind promised work that is due within so many times what the soft one
        has left alone: late pictures neither crowd out promises nor wait for those that have time.
    soft_share: soft work that is overdue by as much as its target was, or by `soft_yield` times what it has left alone,
        is promised an end, too: as many at a time as share a launch, and no more than take such a share of the device.
        Else promised work of another guidance would keep it waiting for ever.
    max_waiting: accepted requests that have not started, beyond which newcomers are refused; None is no limit.
    parking: what it costs to leave a request out of a launch that has no spare step, in pictures' steps, besides the
        time that smaller launches take longer.
    memory: of the arrivals that are expected to go on, relative to the mean target. flow_memory: the same of all who
        come for the time that promised pictures do not need; that is longer, or a burst would seem to go on.
    scan: how many batches of requests, in order, are looked at for a decision.
    """

    margin: float = 3.0
    batch_reserve: float = 0.2
    ageing_s: float = 30.0
    soft_yield: float = 4.0
    soft_share: float = 0.2
    max_waiting: int | None = None
    parking: float = 2.0
    memory: float = 1.0
    flow_memory: float = 4.0
    scan: int = 2


class ElasticPolicy:
    """See the module. quality: what a level is worth; only differences and ratios count."""

    def __init__(self, quality: QualityTable, settings: ElasticSettings | None = None) -> None:
        self._settings = settings or ElasticSettings()
        self._wishes = Wishes(quality, self._settings.parking)
        self._promises = Promises()
        self._soft: list[Work] = []
        self._works: dict[int, Work] = {}
        self._planned_for = 1.0  # the correction
        self._probed_s = -inf
        self._next_turn_s = -inf  # of overdue soft work
        self._arrivals = RecentArrivals(self._settings.memory)
        self._flow = RecentArrivals(self._settings.flow_memory)

    # Admission

    def admit(self, newcomers: Sequence[Demand], view: View, *, is_passed_on: bool = False) -> Refusal | None:
        works = [self._work(newcomer, view.costs) for newcomer in newcomers]
        if not is_passed_on:
            self._note_arrival(works, view)
        hard = _promised(works)
        found = self._considered(works, hard, view)
        if found == "infeasible":
            return self._infeasible(hard, view)
        if isinstance(found, str):
            return Refusal(reason=found)
        if found is not None:
            self._promises.keep(_merged(self._promises.works, hard), found)
            found.follow(view.costs.correction)  # or the next decision has to
        self._take(works)
        return None

    def would_admit(self, newcomers: Sequence[Demand], view: View) -> bool:
        kept = self._arrivals, self._flow, self._probed_s
        self._arrivals, self._flow = copy(self._arrivals), copy(self._flow)
        works = [self._work(newcomer, view.costs) for newcomer in newcomers]
        self._note_arrival(works, view)
        found = self._considered(works, _promised(works), view)
        self._arrivals, self._flow, self._probed_s = kept
        return not isinstance(found, str)

    def resume(self, requests: Sequence[Tracked], view: View) -> None:
        works = [self._resumed(request, view.costs) for request in requests]
        self._promises, self._soft, self._works = Promises(), [], {}
        promised = _promised(works)
        if (found := plan_for(promised, view.start_s, view)) is not None:
            self._promises.keep(promised, found)
        else:
            self._keep_what_can_be_kept(promised, view)
        self._take(works)

    def _resumed(self, request: Tracked, costs: CorrectedCosts) -> Work:
        """As far as it is, with the margin that it was taken with."""
        former = self._works.get(request.demand.request_id)
        work = self._work(request.demand, costs, None if former is None else former.margin_s)
        work.is_hurried = request.is_hurried
        return work.moved_to(request.executed.at)

    def _keep_what_can_be_kept(self, promised: Sequence[Work], view: View) -> None:
        for work in promised:
            kept = [*self._promises.works, work]
            found = plan_for(kept, view.start_s, view)
            if found is None:
                work.is_promised = False  # there is no way to be in time with it, so it is made when there is room
            else:
                self._promises.keep(kept, found)

    def drop(self, request_id: int) -> None:
        work = self._works.pop(request_id)
        work.left = 0
        if work.is_promised:
            self._promises.let_go([work])
        else:
            self._soft.remove(work)

    def hurry(self, request_id: int) -> None:
        self._works[request_id].is_hurried = True

    def owed(self, view: View) -> Sequence[Owed]:  # noqa: ARG002
        return [Owed(work.due_s, work.batched_s) for work in self._works.values()]

    def copy(self) -> Self:
        twin = copy(self)  # what it remembers of costs and quality is true of both
        twin._works = works = {request_id: copy(work) for request_id, work in self._works.items()}
        twin._soft = [works[work.request_id] for work in self._soft]
        twin._promises = self._promises.copy(works)
        twin._arrivals, twin._flow = copy(self._arrivals), copy(self._flow)
        return twin

    # Decision

    def choose(self, view: View) -> Choice | None:
        self._promises.certificate.follow(view.costs.correction)
        self._give_turn(view)
        order = self._in_order(view)
        if not order:
            return None
        cohort, price = self._wishes.cohort(order, self._arrivals.urgent(view.start_s), view)
        granted = self._granted(cohort, price, view)
        members, ladder = cohort.members, cohort.ladder
        if granted is None:
            members, levels = self._certified(view) or (members, cohort.levels(cohort.level))
            ladder, strides = members[0].ladder, longest_strides(members)
            advance(members, strides)
        else:
            levels, strides = granted
        self._settle(members)
        ids = [work.request_id for work in members]
        return Choice(request_ids=ids, kind=ladder.across(levels), levels=levels, strides=strides)

    def _give_turn(self, view: View) -> None:
        """Promises an end to the soft work that has waited longest, see `soft_share`."""
        if not self._soft or view.start_s < self._next_turn_s or not self._is_starving(self._soft[0], view):
            return
        promised = self._promises.works
        if not promised:
            return
        kind = self._soft[0].kind
        members = [work for work in self._soft if work.kind == kind and self._is_starving(work, view)][: view.max_batch]
        rounds = max(work.solo_s / work.row[1] for work in members)
        length_s = view.costs.correction * rounds * members[0].row[len(members)]
        share_s = length_s / self._settings.soft_share
        self._next_turn_s = view.start_s + share_s
        for latest_s in (view.start_s + share_s, max(view.start_s, promised[-1].latest_s) + 2 * length_s):
            turn = [work.promised(latest_s) for work in members]
            kept = _merged(promised, turn)
            found = plan_for(kept, view.start_s, view)
            if found is not None:
                self._promises.keep(kept, found)
                self._works |= {work.request_id: work for work in turn}
                self._soft = [work for work in self._soft if work not in members]
                return

    def _is_starving(self, work: Work, view: View) -> bool:
        target_s = work.latest_s - work.demand.arrived_s
        patience_s = max(target_s, self._settings.soft_yield * view.costs.correction * work.solo_s)
        return view.start_s > work.order + patience_s

    def _in_order(self, view: View) -> list[Work]:
        """The first requests to look at, most urgent first; soft ones are never more urgent than `soft_yield` lets."""
        limit = self._settings.scan * view.max_batch
        urgent = self._promises.works[:limit]
        if not self._soft:
            return urgent
        soft = self._soft[:limit]
        if not urgent:
            return soft
        earliest_s = view.start_s + self._settings.soft_yield * view.costs.correction * soft[0].solo_s
        overdue = bisect_right(soft, earliest_s, key=_order)
        before = bisect_right(urgent, earliest_s, key=_order)
        rest = sorted([*urgent[before:], *soft[overdue:]], key=_order)
        return [*urgent[:before], *soft[:overdue], *rest][:limit]

    def _granted(self, cohort: Cohort, price: float, view: View) -> tuple[list[int], list[int]] | None:
        """The highest levels, up to those that are wished, at which these can run with every promise kept, and their
        strides, and counts them as run. Before any level is lowered, all take the longest steps they may."""
        longest, level = longest_strides(cohort.members), cohort.level
        levels, allowed = cohort.levels_up_to(level), partial(granted_level, self._promises, cohort, view=view)
        if max(longest) > 1:
            wished = self._wishes.strides(cohort, longest, price, view)
            if wished != longest and allowed(wished, [level], margin=self._settings.margin) is not None:
                return cohort.levels(level), wished
        granted = allowed(longest, levels, margin=self._settings.margin)
        return None if granted is None else (cohort.levels(granted), longest)

    def _certified(self, view: View) -> tuple[list[Work], list[int]] | None:
        """What the certificate runs next; if it has nothing (predictions were wrong), the most urgent promises. None
        where nothing is promised."""
        self._repair(view)
        promised = self._promises.works
        if not promised:
            return None
        members = self._promises.certificate.next_members()
        members = (members or first_launch(promised[: view.max_batch]))[: view.max_batch]
        highest = max(work.lowest for work in members)
        return members, [view.costs.nearest_level(highest, work.lowest, work.highest) for work in members]

    # State

    def _work(self, demand: Demand, costs: CorrectedCosts, margin_s: float | None = None) -> Work:
        latest_s = demand.deadline_s - _after_s(demand, costs)
        if margin_s is None:
            margin_s = self._margin_s(demand, costs)
        ages = demand.priority is Priority.BATCH and not demand.is_hard
        order = latest_s + (self._settings.ageing_s if ages else 0.0)
        return Work(demand, costs, latest_s=latest_s, margin_s=margin_s, order=order)

    def _margin_s(self, demand: Demand, costs: CorrectedCosts) -> float:
        """See `ElasticSettings.margin`; as the device is now."""
        kinds = [StepKind.capped(demand.shape, costs.levels[-1], cap) for cap in set(demand.weak_caps)]
        step_s = costs.correction * max(costs.row_s(kind)[1] for kind in kinds)
        return self._settings.margin * costs.deviation * step_s

    def _take(self, works: Iterable[Work]) -> None:
        for work in works:
            if not work.is_promised:
                insort(self._soft, work, key=_order)
            self._works[work.request_id] = work

    def _settle(self, members: Sequence[Work]) -> None:
        """Lets those go that need no more steps."""
        done = [work for work in members if not work.left]
        if done:
            self._promises.let_go(work for work in done if work.is_promised)
            self._soft = [work for work in self._soft if work.left]
            for work in done:
                del self._works[work.request_id]

    def _repair(self, view: View) -> None:
        """A new plan for what is promised, if a correction has broken the one at hand."""
        correction = view.costs.correction
        if self._planned_for != correction:
            self._planned_for = correction
            if not self._promises.certificate.may_start(view.start_s, correction):
                self._promises.replan(view.start_s, view)

    def _note_arrival(self, works: Sequence[Work], view: View) -> None:
        demands = [work.demand for work in works]
        self._arrivals.saw(view.now_s, demands, [_urgent_s(work, view.costs) for work in works])
        self._flow.saw(view.now_s, demands)

    def _considered(self, works: Sequence[Work], hard: Sequence[Work], view: View) -> Certificate | str | None:
        """A plan for what is promised and the newcomers (None if they need no promise), or why there is none."""
        slowdown = self._slowdown(hard)
        if hard and plan_for(hard, view.now_s + view.prepare_s, view, slowdown) is None:
            if not self._may_probe(hard, view, slowdown):
                return "infeasible"
            self._probed_s = view.now_s
            slowdown /= view.costs.correction
        max_waiting = self._settings.max_waiting
        if max_waiting is not None and view.num_waiting + len(works) > max_waiting:
            return "queue_full"
        if not hard:
            return None
        return self._admissible(hard, view, slowdown) or "overloaded"

    def _slowdown(self, hard: Sequence[Work]) -> float:
        is_batch = any(work.demand.priority is Priority.BATCH for work in hard)
        return 1 / (1 - self._settings.batch_reserve) if is_batch else 1.0

    def _admissible(self, hard: Sequence[Work], view: View, slowdown: float) -> Certificate | None:
        """A plan for what is promised and the newcomers, if these are worth it."""
        together = _merged(self._promises.works, hard)
        return admissible(
            hard,
            self._promises.works,
            together,
            view,
            self._wishes.rates_of(len(together), hard[0], view),
            slowdown=slowdown,
            urgent_rate=self._arrivals.urgent(view.now_s).rate,
            images_per_s=self._flow.images_per_s(view.now_s),
        )

    def _may_probe(self, hard: Sequence[Work], view: View, slowdown: float) -> bool:
        """Whether to take these although the correction says that they cannot be in time: it may be out of date, and
        only running something tells. Nobody else is put at risk, and by the table they are in time."""
        correction = view.costs.correction
        if correction <= PROBE_ABOVE or self._works or view.now_s < self._probed_s + PROBE_PAUSE_S:
            return False
        return plan_for(hard, view.now_s + view.prepare_s, view, slowdown / correction) is not None

    # Refusals

    def _infeasible(self, hard: Sequence[Work], view: View) -> Refusal:
        min_latency_ms = self._min_latency_ms(hard, view, self._slowdown(hard))
        return Refusal(reason="infeasible", min_latency_ms=min_latency_ms, pace=view.costs.correction)

    def _min_latency_ms(self, hard: Sequence[Work], view: View, slowdown: float) -> int:
        """The smallest common target at which these would be taken on an idle device, in whole milliseconds."""
        too_small_ms, enough_ms = 0, 1
        while not self._fits_idle(hard, enough_ms, view, slowdown):
            too_small_ms, enough_ms = enough_ms, 2 * enough_ms
        while enough_ms - too_small_ms > 1:
            middle_ms = (too_small_ms + enough_ms) // 2
            if self._fits_idle(hard, middle_ms, view, slowdown):
                enough_ms = middle_ms
            else:
                too_small_ms = middle_ms
        return enough_ms

    def _fits_idle(self, hard: Sequence[Work], latency_ms: float, view: View, slowdown: float) -> bool:
        works = [work.promised(view.now_s + latency_ms / 1000 - _after_s(work.demand, view.costs)) for work in hard]
        return plan_for(_promised(works), view.now_s + view.prepare_s, view, slowdown) is not None


def _after_s(demand: Demand, costs: CorrectedCosts) -> float:
    """From the last step of one that ends alone to its answer."""
    return demand.extra_s + costs.after_s(demand.shape)


def _urgent_s(work: Work, costs: CorrectedCosts) -> float:
    """How much of its work, in seconds of the table, cannot wait for its turn: the share of its target that it takes
    alone. Whoever has ten times as long is in the way of others a tenth as much as whoever has just that."""
    target_s = work.latest_s - work.demand.arrived_s
    alone_s = costs.correction * work.solo_s
    return work.solo_s * alone_s / max(target_s, alone_s)


def _promised(works: Iterable[Work]) -> list[Work]:
    """Those with a hard deadline, in order."""
    return sorted((work for work in works if work.is_promised), key=_order)


def _merged(first: Sequence[Work], second: Sequence[Work]) -> list[Work]:
    return sorted([*first, *second], key=_order) if first and second else list(first or second)
