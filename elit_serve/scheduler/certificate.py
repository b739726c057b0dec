"""A plan that keeps every promise at the lowest allowed levels: as long as one exists, nothing promised can be late.

The plan runs in rounds. A round is one step of every request in the batch: a launch for each kind of step
in it. Requests join in order of their deadlines, as soon as there is room and nobody in the batch would fall behind
the pace that it needs; they stay until they are done. Whoever ends later than its due time makes the plan void.

Anything may run before the rest of the plan does, as long as that can then still start in time; a request that ran
meanwhile sits out its next round. So most decisions need no new plan. Neither does a correction: a plan is made in
seconds of the cost table from its start, and until when it may wait follows for whatever those take on the device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from heapq import heappop, heappush, heapreplace
from math import inf

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.work import Work

ROUNDING_S = 1e-9


# (the first round without it, seconds of the table until then, the request): the rounds before are those that it runs.
End = tuple[int, float, Work]


class Certificate:
    """A feasible plan. How far it has been followed shows in what its requests have left.

    times_s: (round, when it begins) wherever the length of a round changes, and where all ends; here and elsewhere in
        seconds of the table since the plan began.
    ends: of everybody in it.
    afterwards: (seconds of the table since the plan ended, whose work has then been done) of what follows: lists that
        their owner keeps up to date, in order of deadlines; an emptied one asks for nothing more.
    """

    def __init__(
        self,
        ends: Sequence[End],
        times_s: Sequence[tuple[int, float]],
        afterwards: Sequence[tuple[float, list[Work]]] = (),
    ) -> None:
        self.times_s = times_s
        self._ends = ends
        self._afterwards = [(times_s[-1][1] + length_s, works) for length_s, works in afterwards]
        self._begin_s: float | None = None  # until when the plan might have begun, at this correction:
        self._correction = 1.0

    @classmethod
    def of_nothing(cls) -> Certificate:
        return cls([], [(0, 0.0)])

    def latest_start_s(self, correction: float) -> float:
        """Until when the rest of the plan may wait.

        correction: seconds on the device for each of the table.
        """
        if self._begin_s is None or self._correction != correction:
            self._correction = correction
            dues_s = [work.due_s - correction * end_s for _, end_s, work in self._ends]
            dues_s += [works[0].due_s - correction * end_s for end_s, works in self._afterwards if works]
            self._begin_s = min(dues_s, default=inf)
        return self._begin_s + correction * self._done_s()

    def let_go(self) -> None:
        """Forgets those that have ended."""
        self._ends = [end for end in self._ends if end[2].left]
        self._begin_s = None

    def next_members(self) -> list[Work]:
        """The next launch of the plan, all of one kind; none when all is done."""
        _, pending = self._present_round()
        return [work for work in pending if work.kind == pending[0].kind]

    def _present_round(self) -> tuple[int, list[Work]]:
        """The first round in which somebody has yet to run, and who."""
        pending: list[Work] = []
        at = self.times_s[-1][0]
        for end, _, work in self._ends:
            when = end - work.left
            if when > at or not work.left:
                continue
            if when < at:
                at, pending = when, []
            pending.append(work)
        return at, pending

    def _done_s(self) -> float:
        """How much shorter the rest of the plan is than the whole; of the present round the rest runs by itself."""
        at, pending = self._present_round()
        if not pending:
            return self.times_s[-1][1]
        segment = bisect_right(self.times_s, (at, inf))
        (first, begin_s), (after, end_s) = self.times_s[segment - 1 : segment + 1]
        return begin_s + (at + 1 - first) * (end_s - begin_s) / (after - first) - _launches_s(pending)


def _launches_s(works: Sequence[Work]) -> float:
    """What one step of each costs, in a launch for every kind."""
    rows = {work.kind: work.row for work in works}
    kinds = [work.kind for work in works]
    return sum([row[kinds.count(kind)] for kind, row in rows.items()])


def plan(
    works: Sequence[Work],
    start_s: float,
    *,
    max_batch: int,
    correction: float = 1.0,
    afterwards: Sequence[tuple[float, list[Work]]] = (),
) -> Certificate | None:
    """A plan for `works` (in order of their deadlines) on a device that is free from `start_s`, or None.

    correction: seconds that every step takes for each of the table. afterwards: as in `Certificate`, what follows.
    """
    rounds = _Rounds(works, [(work.due_s - start_s) / correction for work in works], max_batch)
    latest_s = [(due[0].due_s - start_s) / correction - length_s for length_s, due in afterwards if due]
    if not rounds.run(min(latest_s, default=inf)):
        return None
    return Certificate(rounds.ended, rounds.times_s, afterwards)


class _KindCount:
    """How many requests of a round share a launch, and what that costs at every count."""

    __slots__ = ("count", "row")

    def __init__(self, row: tuple[float, ...]) -> None:
        self.count = 0
        self.row = row


class _Rounds:
    """Makes a plan; the state is that of the present round. All times are seconds of the table since the plan began.

    dues_s: when each must have ended.
    changes: heap of (round before which a request changes its kind of step, index of the request, its run, its count).
    limits: heap of (how long a round may take for a request to keep its pace, index); outdated ones lie too low.
    """

    def __init__(self, works: Sequence[Work], dues_s: Sequence[float], max_batch: int) -> None:
        self._works, self._dues_s, self._max_batch = works, dues_s, max_batch
        self._counts: dict[StepKind, _KindCount] = {}
        self._changes: list[tuple[int, int, int, _KindCount]] = []
        self._limits: list[tuple[float, int]] = []
        self._round = 0
        self._round_s = 0.0
        self._time_s = 0.0
        self.times_s = [(0, 0.0)]
        self.ends: list[int] = []
        self.ended: list[End] = []

    def run(self, until_s: float) -> bool:
        """Whether everybody ends in time, and all by `until_s`."""
        index = self._take_from(0)
        while index < len(self._works):
            if not self._changes or not self._run_until_a_change():
                return False
            if self._dues_s[index] - self._time_s < self._works[index].solo_s - ROUNDING_S:
                return False
            index = self._take_from(index)
        while self._changes:
            if not self._run_until_a_change():
                return False
        return self._time_s <= until_s + ROUNDING_S

    def _take_from(self, first: int) -> int:
        """Lets more into the batch while everybody then keeps pace; the index of the next that has to wait.

        Most of the time of a decision goes by here, hence the local names.
        """
        works, dues_s, counts, limits, changes = self._works, self._dues_s, self._counts, self._limits, self._changes
        at, time_s, round_s = self._round, self._time_s, self._round_s
        index, last = first, min(len(works), first + self._max_batch - len(changes))
        while index < last:
            work = works[index]
            kind = counts.get(work.kind)
            if kind is None:
                kind = counts[work.kind] = _KindCount(work.row)
            row, count = kind.row, kind.count
            longer_s = round_s + row[count + 1] - row[count]
            limit_s = (dues_s[index] - time_s) * row[1] / work.solo_s
            needed_s = longer_s - ROUNDING_S
            if needed_s > limit_s or (limits and needed_s > limits[0][0] and self._is_too_slow(needed_s)):
                break
            round_s = longer_s
            kind.count = count + 1
            self.ends.append(at + work.left)
            heappush(limits, (limit_s, index))
            heappush(changes, (at + work.run_left, index, work.run, kind))
            index += 1
        self._round_s = round_s
        return index

    def _is_too_slow(self, round_s: float) -> bool:
        """Whether somebody would fall behind if rounds took so long; brings outdated limits up to date on the way."""
        limits = self._limits
        while limits and limits[0][0] < round_s:
            index = limits[0][1]
            left = self.ends[index] - self._round
            if left <= 0:
                heappop(limits)
                continue
            work = self._works[index]
            limit_s = (self._dues_s[index] - self._time_s) / left * (work.row[1] * work.left / work.solo_s)
            if limit_s < round_s:
                return True
            heapreplace(limits, (limit_s, index))
        return False

    def _run_until_a_change(self) -> bool:
        """Runs rounds until the kind of somebody's step changes; False if one ends too late."""
        changes, ends, round_s = self._changes, self.ends, self._round_s
        until = changes[0][0]
        time_s = self._time_s = self._time_s + (until - self._round) * round_s
        self._round = until
        self.times_s.append((until, time_s))
        while changes and changes[0][0] == until:
            _, index, run, kind = heappop(changes)
            row, count = kind.row, kind.count - 1
            kind.count = count
            round_s -= row[count + 1] - row[count]
            if until < ends[index]:
                round_s += self._enter_next_run(index, run + 1)
            elif time_s > self._dues_s[index] + ROUNDING_S:
                return False
            else:
                self.ended.append((until, time_s, self._works[index]))
        self._round_s = round_s
        return True

    def _enter_next_run(self, index: int, run: int) -> float:
        """By how much that lengthens a round."""
        key, steps = self._works[index].runs[run]
        kind = self._counts.get(key)
        if kind is None:
            kind = self._counts[key] = _KindCount(self._works[index].rows[run])
        kind.count += 1
        heappush(self._changes, (self._round + steps, index, run, kind))
        return kind.row[kind.count] - kind.row[kind.count - 1]
