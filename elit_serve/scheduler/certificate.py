"""A plan that keeps every promise at the lowest allowed levels: as long as one exists, nothing promised can be late.

The plan runs in rounds. A round is one step of every request in the batch: a launch for each lane (level and weak cap)
in it. Requests join in order of their deadlines, as soon as there is room and nobody in the batch would fall behind
the pace that it needs; they stay until they are done. Whoever ends later than its due time makes the plan void.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace

from elit_serve.scheduler.corrected import CorrectedCosts
from elit_serve.scheduler.work import Lane, Work

ROUNDING_S = 1e-9


class Certificate:
    """A feasible plan, and how far it has been followed.

    entries: (request, the round in which its first step runs, the round before which its last one has).
    times_s: (round, when it begins) wherever the length of a round changes; end_s: when all is done.
    """

    def __init__(
        self, entries: Sequence[tuple[Work, int, int]], times_s: Sequence[tuple[int, float]], end_s: float
    ) -> None:
        self._entries = entries
        self._round = 0
        self._left_in_round: list[Work] = []
        self.times_s = times_s
        self.end_s = end_s

    def next_members(self) -> list[Work]:
        """The next launch of the plan, all of one lane. Requests that have ended in the meantime are passed over."""
        while True:
            ready = [work for work in self._left_in_round if work.left and not work.is_dropped]
            if ready:
                return [work for work in ready if work.lane == ready[0].lane]
            self._entries = [entry for entry in self._entries if entry[2] > self._round]
            if not self._entries:
                return []
            self._left_in_round = [work for work, join, _ in self._entries if join <= self._round]
            self._round += 1

    def launched(self, members: Sequence[Work]) -> None:
        """These have run their step of the present round."""
        self._left_in_round = [work for work in self._left_in_round if work not in members]

    def at_round(self, at: int, costs: CorrectedCosts) -> list[Work]:
        """Copies of what will be left of its requests when this round begins, if it is followed from the start."""
        return [work.ahead(max(0, at - join), costs) for work, join, end in self._entries if end > at]


def plan(
    works: Sequence[Work], start_s: float, costs: CorrectedCosts, caps: Sequence[int], slowdown: float = 1.0
) -> Certificate | None:
    """A plan for `works` (in order of their deadlines) on a device that is free from `start_s`, or None.

    caps: largest batches to try, one after the other. slowdown: plans as if every step took so many times as long.
    """
    for cap in caps:
        certificate = _plan_with_cap(works, start_s, costs, cap, slowdown)
        if certificate is not None:
            return certificate
    return None


def _plan_with_cap(
    works: Sequence[Work], start_s: float, costs: CorrectedCosts, cap: int, slowdown: float
) -> Certificate | None:
    batch = _Batch(works, costs)
    for index, work in enumerate(works):
        due_s = (work.due_s - start_s) / slowdown
        while len(batch.changes) >= cap or not batch.can_take(work, due_s):
            if not batch.changes or not batch.run_until_a_change():
                return None
        batch.take(index, work, due_s)
    while batch.changes:
        if not batch.run_until_a_change():
            return None
    times_s = [(at, start_s + slowdown * time_s) for at, time_s in batch.times_s]
    return Certificate(
        list(zip(works, batch.joins, batch.ends, strict=True)), times_s, start_s + slowdown * batch.time_s
    )


class _Batch:
    """The requests in the present round, while a plan is made. Times are seconds since the start of the plan.

    changes: heap of (round before which a request leaves its lane, index of the request, its run).
    limits: heap of (how long a round may take for a request to keep its pace, index); outdated ones lie too low.
    """

    def __init__(self, works: Sequence[Work], costs: CorrectedCosts) -> None:
        self._works, self._costs = works, costs
        self._counts: dict[Lane, int] = {}
        self._round_s = 0.0
        self._due_s: list[float] = []
        self._weights: list[float] = []
        self._limits: list[tuple[float, int]] = []
        self.changes: list[tuple[int, int, int]] = []
        self.round = 0
        self.time_s = 0.0
        self.times_s = [(0, 0.0)]
        self.joins: list[int] = []
        self.ends: list[int] = []

    def can_take(self, work: Work, due_s: float) -> bool:
        """Whether everybody keeps pace with one more in the batch."""
        lane = work.lane
        row = self._costs.row_s(*lane)
        present = self._counts.get(lane, 0)
        round_s = self._round_s + row[present + 1] - row[present] - ROUNDING_S
        if round_s * work.solo_s > (due_s - self.time_s) * row[1]:
            return False
        return not self._limits or round_s <= self._limits[0][0] or round_s <= self._tightest_s(round_s)

    def take(self, index: int, work: Work, due_s: float) -> None:
        weight = self._costs.row_s(*work.lane)[1] * work.left / work.solo_s
        self._due_s.append(due_s)
        self._weights.append(weight)
        self.joins.append(self.round)
        self.ends.append(self.round + work.left)
        heappush(self._limits, (weight * (due_s - self.time_s) / work.left, index))
        heappush(self.changes, (self.round + work.run_left, index, work.run))
        self._add(work.lane, 1)

    def run_until_a_change(self) -> bool:
        """Runs rounds until a request leaves its lane; False if one ends too late."""
        until = self.changes[0][0]
        self.time_s += (until - self.round) * self._round_s
        self.round = until
        while self.changes and self.changes[0][0] == until:
            _, index, run = heappop(self.changes)
            runs = self._works[index].runs
            self._add(runs[run][0], -1)
            if until < self.ends[index]:
                self._add(runs[run + 1][0], 1)
                heappush(self.changes, (until + runs[run + 1][1], index, run + 1))
            elif self.time_s > self._due_s[index] + ROUNDING_S:
                return False
        self.times_s.append((until, self.time_s))
        return True

    def _tightest_s(self, wanted_s: float) -> float:
        """How long a round may take for everybody to keep pace, as far as needed to tell whether `wanted_s` may be."""
        while self._limits:
            limit_s, index = self._limits[0]
            if limit_s >= wanted_s:
                break
            left = self.ends[index] - self.round
            if left <= 0:
                heappop(self._limits)
                continue
            now_s = self._weights[index] * (self._due_s[index] - self.time_s) / left
            if now_s <= limit_s + ROUNDING_S:
                return limit_s
            heapreplace(self._limits, (now_s, index))
        return float("inf")

    def _add(self, lane: Lane, change: int) -> None:
        row = self._costs.row_s(*lane)
        present = self._counts.get(lane, 0)
        self._counts[lane] = present + change
        self._round_s += row[present + change] - row[present]
