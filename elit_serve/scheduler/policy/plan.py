"""A plan that keeps every promise at the lowest allowed levels: as long as one exists, nothing promised can be late.

`plan_plain` says in a few lines what such a plan is; here it is made fast, and followed.

The plan runs in rounds. A round is one step of every request in the batch, in the launches that take the least: one for
each kind of step in it, or for several levels together where that is measured (`Mixing`).
Requests join in order of their deadlines, as soon as there is room and nobody in the batch would fall behind the pace
that it needs; they stay until they are done. Those who end in a round are decoded behind it, a launch's together,
before the next begins. Whoever ends later than its due time makes the plan void.

Anything may run before the rest of the plan does, as long as that can then still start in time; a request that ran
meanwhile sits out its next round. So most decisions need no new plan. Neither does a correction: a plan is made in
seconds of the cost table from its start, and until when it may wait follows for whatever those take on the device.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import compress
from math import inf

from elit_serve.scheduler.mixing import Mixing, Rung
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.policy.rounds import decoded, first_launch, launches_s

ROUNDING_S = 1e-9
DRIFT = 1.2  # corrections that differ by no more are looked ahead for together: 3 places of 1,000 then decide


class Certificate:
    """A feasible plan. How far it has been followed shows in what its requests have left.

    works: everybody in it, in the order in which they join. joins, ends, ends_s: the first round in which each runs,
        the first without it, and when it has ended, see `decoded`; here and elsewhere in seconds of the table since the
        plan began.
    times_s: (round, when it begins) wherever the length of a round changes, and where all ends; twice where those who
        end before it are decoded, before and after that.
    """

    def __init__(
        self,
        works: Sequence[Work],
        joins: Sequence[int],
        ends: Sequence[int],
        ends_s: Sequence[float],
        times_s: Sequence[tuple[int, float]],
    ) -> None:
        self._works, self._ends_s, self._times_s = works, ends_s, times_s
        self._places = list(zip(works, joins, ends, strict=True))
        self._deciding: list[tuple[Work, float, float]] = []  # with when each is due and ends
        self._corrections = 0.0, 0.0  # between which those in `_deciding` alone decide until when the plan may wait
        self._earliest: tuple[list[Work], list[Work]] = [], []  # the first two of them, at either end of that

    @classmethod
    def of_nothing(cls) -> Certificate:
        return cls([], [], [], [], [(0, 0.0)])

    def copy(self, works: Mapping[int, Work]) -> Certificate:
        """The same plan for copies of its requests, by their ids."""
        self._forget_ended()
        own = [works[work.request_id] for work in self._works]
        joins, ends = [joins for _, joins, _ in self._places], [ends for _, _, ends in self._places]
        return Certificate(own, joins, ends, self._ends_s, self._times_s)

    def follow(self, correction: float) -> None:
        """To be called, while nothing is tried out, before `latest_start_s` is asked for this correction."""
        low, high = self._corrections
        if not (low <= correction <= high and self._is_decided):
            self._find_deciding(correction / DRIFT, correction * DRIFT)

    def latest_start_s(self, correction: float) -> float:
        """Until when the rest of the plan may wait.

        correction: seconds on the device for each of the table.
        """
        whole_s = self._latest_whole_s(correction)
        return whole_s if whole_s == inf else whole_s + correction * self._done_s()

    def may_start(self, start_s: float, correction: float) -> bool:
        """Whether `latest_start_s` is not before that. What has run of the plan is only counted where that decides."""
        whole_s = self._latest_whole_s(correction)
        return start_s <= whole_s + ROUNDING_S or start_s <= whole_s + correction * self._done_s() + ROUNDING_S

    def _latest_whole_s(self, correction: float) -> float:
        """As `latest_start_s`, if nothing of the plan had run."""
        if self._is_decided:
            begins_s = [due_s - correction * end_s for work, due_s, end_s in self._deciding if work.left]
        else:
            ends = zip(self._works, self._ends_s, strict=True)
            begins_s = [work.due_s - correction * end_s for work, end_s in ends if work.left]
        return min(begins_s, default=inf)

    def spans(self) -> list[tuple[Work, float, float]]:
        """Everybody with when its first step begins and when it ends, see `ends_s`."""
        return [
            (work, self._begins_s(joins), end_s)
            for (work, joins, _), end_s in zip(self._places, self._ends_s, strict=True)
        ]

    def next_members(self) -> list[Work]:
        """The next launch of the plan, of one kind or mixed; none when all is done."""
        _, pending = self._present_round()
        return first_launch(pending) if pending else []

    @property
    def _is_decided(self) -> bool:
        """Whether some of those by which others were left out of `_deciding` still have something to run."""
        first, last = self._earliest
        return any(work.left for work in first) and any(work.left for work in last)

    def _find_deciding(self, low: float, high: float) -> None:
        """Keeps those that alone decide at any correction from `low` to `high`: due - correction * end is linear in
        the correction, so whoever lies above another one at both ends lies above it everywhere between. Whoever is left
        out lies above two, so that one of these may end."""
        self._forget_ended()
        self._corrections, self._deciding, self._earliest = (low, high), [], ([], [])
        if not self._works:
            return
        works, ends_s = self._works, self._ends_s
        at_low = [work.due_s - low * end_s for work, end_s in zip(works, ends_s, strict=True)]
        at_high = [low_s - (high - low) * end_s for low_s, end_s in zip(at_low, ends_s, strict=True)]
        first, last = _two_least(at_low), _two_least(at_high)
        most_low, most_high = max([at_low[index] for index in last]), max([at_high[index] for index in first])
        early = [index for index, low_s in enumerate(at_low) if low_s <= most_low]
        deciding = [index for index in early if at_high[index] <= most_high]
        self._deciding = [(works[index], works[index].due_s, ends_s[index]) for index in deciding]
        self._earliest = [works[index] for index in first], [works[index] for index in last]

    def _forget_ended(self) -> None:
        left = [work.left for work in self._works]
        if 0 in left:
            self._works, self._ends_s = list(compress(self._works, left)), list(compress(self._ends_s, left))
            self._places = list(compress(self._places, left))

    def _begins_s(self, at: int) -> float:
        """When a round begins, whoever has ended being decoded."""
        segment = bisect_right(self._times_s, (at, inf)) - 1
        (first, begin_s), *later = self._times_s[segment : segment + 2]
        if at == first or not later:
            return begin_s
        ((after, end_s),) = later
        return begin_s + (at - first) * (end_s - begin_s) / (after - first)

    def _present_round(self) -> tuple[int, list[Work]]:
        """The first round in which somebody has yet to run, and who."""
        pending: list[Work] = []
        at = self._times_s[-1][0]
        for work, joins, ends in self._places:
            if joins > at:
                break
            when = ends - work.left
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
            return self._times_s[-1][1]
        segment = bisect_right(self._times_s, (at, inf))
        (first, begin_s), (after, end_s), *later = self._times_s[segment - 1 : segment + 2]
        done_s = begin_s + (at + 1 - first) * (end_s - begin_s) / (after - first) - launches_s(pending)
        if at + 1 == after and later and later[0][0] == after:
            done_s += later[0][1] - end_s - decoded([work for work in pending if work.left == 1])[0]
        return done_s


def _two_least(values: Sequence[float]) -> list[int]:
    """The places of the two lowest, or of the only one."""
    first = values.index(min(values))
    others = [*values[:first], inf, *values[first + 1 :]]
    return [first, others.index(min(others))] if len(values) > 1 else [first]


def plan(works: Sequence[Work], start_s: float, *, max_batch: int, correction: float = 1.0) -> Certificate | None:
    """A plan for `works` (in order of their deadlines) on a device that is free from `start_s`, or None.

    correction: seconds that every step takes for each of the table.
    """
    rounds = _Rounds(works, [(work.due_s - start_s) / correction for work in works], max_batch)
    return rounds.certificate() if rounds.run() else None


class _Crowd:
    """Who of a round may share launches, and what these take.

    key: of those who are there, see `Mixing`; where only one kind shares them, how many. known_s: what `seconds` has
    been asked for.
    """

    __slots__ = ("key", "known_s", "seconds", "step_s")

    def __init__(self, rung: Rung) -> None:
        self.key, self.step_s = 0, 0.0
        self.seconds: Callable[[int], float]
        if rung.mixing is None:
            self.known_s, self.seconds = dict(enumerate(rung.row_s)), rung.row_s.__getitem__
        else:
            self.known_s, self.seconds = rung.mixing.known_s, rung.mixing.seconds

    def change(self, units: int) -> float:
        """More of them, or fewer; by how much that lengthens the round."""
        before_s = self.step_s
        key = self.key = self.key + units
        after_s = self.step_s = self.known_s.get(key) or self.seconds(key)
        return after_s - before_s


class _Rounds:
    """Makes a plan; the state is that of the present round. All times are seconds of the table since the plan began.

    dues_s: when each must have ended.
    changes: heap of (round before which the kind of a request's steps changes, its index, its run, the rung of that).
    crowds: by rung; those that may share launches have one.
    limits: heap of (how long a round may take for a request to keep its pace, index); outdated ones lie too low.
    """

    def __init__(self, works: Sequence[Work], dues_s: Sequence[float], max_batch: int) -> None:
        self._works, self._dues_s, self._max_batch = works, dues_s, max_batch
        self._crowds: dict[Rung | Mixing, _Crowd] = {}
        self._changes: list[tuple[int, int, int, Rung]] = []
        self._limits: list[tuple[float, int]] = []
        self._round = 0
        self._round_s = 0.0
        self._time_s = 0.0
        self._joins: list[int] = []
        self._ends: list[int] = []
        self._ends_s = [0.0] * len(works)
        self._times_s = [(0, 0.0)]
        self._decodes = bool(works) and works[0].answering is not None

    def run(self) -> bool:
        """Whether everybody ends in time."""
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
        return True

    def certificate(self) -> Certificate:
        """After `run`."""
        return Certificate(list(self._works), self._joins, self._ends, self._ends_s, self._times_s)

    def _take_from(self, first: int) -> int:
        """Lets more into the batch while everybody then keeps pace; the index of the next that has to wait.

        Most of the time of a decision goes by here, hence the local names.
        """
        works, dues_s, crowds, limits, changes = self._works, self._dues_s, self._crowds, self._limits, self._changes
        at, time_s, round_s, ends = self._round, self._time_s, self._round_s, self._ends
        last = min(len(works), first + self._max_batch - len(changes))
        for index in range(first, last):
            work = works[index]
            rung = work.rung
            crowd = crowds.get(rung) or self._crowd_of(rung)
            key = crowd.key + rung.unit
            step_s = crowd.known_s.get(key) or crowd.seconds(key)
            longer_s = round_s + (step_s - crowd.step_s)
            limit_s = (dues_s[index] - time_s) * rung.row_s[1] / work.solo_s
            needed_s = longer_s - ROUNDING_S
            if needed_s > limit_s or (limits and needed_s > limits[0][0] and self._is_too_slow(needed_s)):
                break
            round_s, crowd.key, crowd.step_s = longer_s, key, step_s
            ends.append(at + work.left)
            heappush(limits, (limit_s, index))
            heappush(changes, (at + work.run_left, index, work.run, rung))
        self._round_s = round_s
        self._joins += [at] * (len(ends) - first)
        return len(ends)

    def _is_too_slow(self, round_s: float) -> bool:
        """Whether somebody would fall behind if rounds took so long; brings outdated limits up to date on the way."""
        limits = self._limits
        while limits and limits[0][0] < round_s:
            index = limits[0][1]
            left = self._ends[index] - self._round
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
        changes, crowds, round_s = self._changes, self._crowds, self._round_s
        dues_s, ends, ends_s = self._dues_s, self._ends, self._ends_s
        until = changes[0][0]
        time_s = self._time_s = self._time_s + (until - self._round) * round_s
        self._round = until
        self._times_s.append((until, time_s))
        ended: list[int] = []
        while changes and changes[0][0] == until:
            _, index, run, rung = heappop(changes)
            round_s += crowds[rung].change(-rung.unit)
            if until < ends[index]:
                round_s += self._enter_next_run(index, run + 1)
            elif self._decodes:
                ended.append(index)
            elif time_s > dues_s[index] + ROUNDING_S:
                return False
            else:
                ends_s[index] = time_s
        self._round_s = round_s
        return not ended or self._decode(ended)

    def _decode(self, ended: Sequence[int]) -> bool:
        """Lets those who have ended be decoded before the next round; False if somebody is too late then."""
        decode_s, late_s = decoded([self._works[index] for index in ended])
        for index, more_s in zip(ended, late_s, strict=True):
            end_s = self._ends_s[index] = self._time_s + more_s
            if end_s > self._dues_s[index] + ROUNDING_S:
                return False
        self._time_s += decode_s
        self._times_s.append((self._round, self._time_s))
        return True

    def _enter_next_run(self, index: int, run: int) -> float:
        """By how much that lengthens a round."""
        entered = self._works[index].runs[run]
        heappush(self._changes, (self._round + entered.steps, index, run, entered.rung))
        return self._crowd_of(entered.rung).change(entered.rung.unit)

    def _crowd_of(self, rung: Rung) -> _Crowd:
        """Of the requests on a rung, and on those that may share launches with it."""
        shared = rung.mixing or rung
        if shared not in self._crowds:
            self._crowds[shared] = _Crowd(rung)
        crowd = self._crowds[rung] = self._crowds[shared]
        return crowd
