"""A plan that keeps every promise at the lowest allowed levels: as long as one exists, nothing promised can be late.

The plan runs in rounds. A round is one step of every request in the batch: a launch for each lane (level and weak cap)
in it. Requests join in order of their deadlines, as soon as there is room and nobody in the batch would fall behind
the pace that it needs; they stay until they are done. Whoever ends later than its due time makes the plan void.

Anything may run before the rest of the plan does, as long as that can then still start in time; a request that ran
meanwhile sits out its next round. So most decisions need no new plan. Neither does a correction: a plan is made in
seconds of the cost table from its start, and until when it may wait follows for whatever those take on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from heapq import heappop, heappush, heapreplace
from math import inf

from elit_serve.scheduler.work import Lane, Work

ROUNDING_S = 1e-9


# A request's part of a plan: it runs one step in every round from the first number up to, but not in, the second.
# Entries are in order of deadline, so nobody joins before the one ahead.
Entry = tuple[Work, int, int]

End = tuple[int, float, Work]  # (the first round without it, seconds of the table until then, who has ended)


class Certificate:
    """A feasible plan, and how far it has been followed.

    times_s: (round, when it begins) wherever the length of a round changes, and where all ends; here and elsewhere in
        seconds of the table since the plan began.
    afterwards: (seconds of the table since the plan ended, when they must have passed) of what follows.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        times_s: Sequence[tuple[int, float]],
        ends: Sequence[End],
        afterwards: Sequence[tuple[float, float]] = (),
    ) -> None:
        self.entries = entries
        self.times_s = times_s
        self._ends = ends
        self._afterwards = [(times_s[-1][1] + length_s, due_s) for length_s, due_s in afterwards]
        self._begin_s: float | None = None  # until when the plan might have begun, at this correction:
        self._correction = 1.0
        self._done_s = 0.0
        self._round = -1
        self._segment = -1  # of times_s
        self._planned_s = 0.0
        self._pending: dict[Lane, set[Work]] = {}  # who has yet to run in the present round
        self._rows: dict[Lane, tuple[float, ...]] = {}
        self._ahead: dict[Work, int] = {}
        self._next_round()

    @classmethod
    def of_nothing(cls) -> Certificate:
        return cls([], [(0, 0.0)], [])

    def latest_start_s(self, correction: float, after: AbstractSet[Work] = frozenset()) -> float:
        """Until when the rest of the plan may wait, once those of `after` have run a step.

        correction: seconds on the device for each of the table.
        """
        if self._begin_s is None or self._correction != correction:
            self._correction = correction
            dues_s = [work.due_s - correction * end_s for _, end_s, work in self._ends]
            dues_s += [due_s - correction * end_s for end_s, due_s in self._afterwards]
            self._begin_s = min(dues_s, default=inf)
        return self._begin_s + correction * (self._done_s + self._freed_s(after))

    def has_run(self, members: AbstractSet[Work]) -> None:
        """These have run a step: that of the present round, or else they sit out their next one."""
        extra = set(members)
        for pending in self._pending.values():
            extra -= pending
        for work in extra:
            self._ahead[work] = self._ahead.get(work, 0) + 1
        self._remove(members)

    def drop(self, work: Work) -> None:
        """This one has ended early."""
        self._ends = [end for end in self._ends if end[2] is not work]
        self._begin_s = None
        self._remove({work})

    def next_members(self) -> list[Work]:
        """The next launch of the plan, all of one lane; none when all is done."""
        pending = next(iter(self._pending.values()), set())
        return [work for work, _, _ in self.entries if work in pending]

    def at_round(self, at: int) -> list[Work]:
        """Copies of what will be left of its requests when this round begins, if it is followed from the start."""
        return [work.ahead(max(0, at - join)) for work, join, end in self.entries if end > at]

    def _freed_s(self, members: AbstractSet[Work]) -> float:
        """How much shorter the rest of the plan is once these have run: what is left of the round runs without them."""
        freed_s = 0.0
        for lane, pending in self._pending.items():
            row = self._rows[lane]
            freed_s += row[len(pending)] - row[len(pending - members)]
        return freed_s

    def _remove(self, members: AbstractSet[Work]) -> None:
        self._done_s += self._freed_s(members)
        for pending in self._pending.values():
            pending -= members
        self._pending = {lane: pending for lane, pending in self._pending.items() if pending}
        if not self._pending:
            self._next_round()

    def _next_round(self) -> None:
        while not self._pending and self.entries:
            self._round += 1
            if self._round >= self.times_s[self._segment + 1][0]:
                self._next_segment()
            if self.entries:
                self._fill_round()
                left_s = sum(self._rows[lane][len(pending)] for lane, pending in self._pending.items())
                self._done_s += self._planned_s - left_s

    def _next_segment(self) -> None:
        """On to the rounds that follow a change, if there are any."""
        self.entries = [entry for entry in self.entries if entry[2] > self._round and not entry[0].is_dropped]
        self._ends = [end for end in self._ends if end[0] > self._round]
        self._begin_s = None
        while self._segment + 2 < len(self.times_s) and self.times_s[self._segment + 1][0] <= self._round:
            self._segment += 1
        (first, begin_s), (after, end_s) = self.times_s[self._segment : self._segment + 2]
        self._planned_s = (end_s - begin_s) / (after - first)

    def _fill_round(self) -> None:
        for work, join, _ in self.entries:
            if join > self._round:
                break
            if work.is_dropped:
                continue
            if self._ahead.get(work):
                self._ahead[work] -= 1
            elif work.lane in self._pending:
                self._pending[work.lane].add(work)
            else:
                self._pending[work.lane] = {work}
                self._rows[work.lane] = work.row


def plan(
    works: Sequence[Work],
    start_s: float,
    *,
    max_batch: int,
    correction: float = 1.0,
    afterwards: Sequence[tuple[float, float]] = (),
) -> Certificate | None:
    """A plan for `works` (in order of their deadlines) on a device that is free from `start_s`, or None.

    correction: seconds that every step takes for each of the table. afterwards: as in `Certificate`, what follows.
    """
    rounds = _Rounds(works, [(work.due_s - start_s) / correction for work in works], max_batch)
    until_s = min([(due_s - start_s) / correction - length_s for length_s, due_s in afterwards], default=inf)
    if not rounds.run(until_s):
        return None
    entries = list(zip(works, rounds.joins, rounds.ends, strict=True))
    return Certificate(entries, rounds.times_s, rounds.ended, afterwards)


class _LaneCount:
    """How many requests of a round share a lane, and what that costs at every count."""

    __slots__ = ("count", "row")

    def __init__(self, row: tuple[float, ...]) -> None:
        self.count = 0
        self.row = row


class _Rounds:
    """Makes a plan; the state is that of the present round. All times are seconds of the table since the plan began.

    dues_s: when each must have ended.
    changes: heap of (round before which a request leaves its lane, index of the request, its run, its lane).
    limits: heap of (how long a round may take for a request to keep its pace, index); outdated ones lie too low.
    """

    def __init__(self, works: Sequence[Work], dues_s: Sequence[float], max_batch: int) -> None:
        self._works, self._dues_s, self._max_batch = works, dues_s, max_batch
        self._lanes: dict[Lane, _LaneCount] = {}
        self._changes: list[tuple[int, int, int, _LaneCount]] = []
        self._limits: list[tuple[float, int]] = []
        self._round = 0
        self._round_s = 0.0
        self._time_s = 0.0
        self.times_s = [(0, 0.0)]
        self.joins: list[int] = []
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
        works, dues_s, lanes, limits, changes = self._works, self._dues_s, self._lanes, self._limits, self._changes
        at, time_s, round_s = self._round, self._time_s, self._round_s
        index, last = first, min(len(works), first + self._max_batch - len(changes))
        while index < last:
            work = works[index]
            lane = lanes.get(work.lane)
            if lane is None:
                lane = lanes[work.lane] = _LaneCount(work.row)
            row, count = lane.row, lane.count
            longer_s = round_s + row[count + 1] - row[count]
            limit_s = (dues_s[index] - time_s) * row[1] / work.solo_s
            needed_s = longer_s - ROUNDING_S
            if needed_s > limit_s or (limits and needed_s > limits[0][0] and self._is_too_slow(needed_s)):
                break
            round_s = longer_s
            lane.count = count + 1
            self.joins.append(at)
            self.ends.append(at + work.left)
            heappush(limits, (limit_s, index))
            heappush(changes, (at + work.run_left, index, work.run, lane))
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
        """Runs rounds until a request leaves its lane; False if one ends too late."""
        changes = self._changes
        until = changes[0][0]
        self._time_s += (until - self._round) * self._round_s
        self._round = until
        self.times_s.append((until, self._time_s))
        while changes and changes[0][0] == until:
            _, index, run, lane = heappop(changes)
            lane.count -= 1
            self._round_s -= lane.row[lane.count + 1] - lane.row[lane.count]
            if until < self.ends[index]:
                self._enter_next_lane(index, run + 1)
            elif self._time_s > self._dues_s[index] + ROUNDING_S:
                return False
            else:
                self.ended.append((until, self._time_s, self._works[index]))
        return True

    def _enter_next_lane(self, index: int, run: int) -> None:
        key, steps = self._works[index].runs[run]
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _LaneCount(self._works[index].rows[run])
        lane.count += 1
        self._round_s += lane.row[lane.count] - lane.row[lane.count - 1]
        heappush(self._changes, (self._round + steps, index, run, lane))
