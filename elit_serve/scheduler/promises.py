"""Everything that was promised, and the certificate that all of it can be kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, islice

from elit_serve.scheduler.certificate import Certificate, End, plan
from elit_serve.scheduler.policy_view import View
from elit_serve.scheduler.work import Work

REPLAN_PAUSE = 4  # decisions without a search for a new plan after one that found none


@dataclass(frozen=True, slots=True)
class Block:
    """Requests that take `length_s` seconds of the table after everything due before, one group after the other.

    works: those with steps to run. groups: run side by side, and end together; they may hold some that have ended.
    """

    works: list[Work]
    groups: list[list[Work]]
    length_s: float

    @classmethod
    def of(cls, works: list[Work]) -> Block:
        groups = _groups(works)
        return cls(works, groups, sum(_length_s(group) for group in groups))

    def certificate(self, afterwards: Sequence[tuple[float, list[Work]]]) -> Certificate:
        """The plan that `length_s` was computed from. Whoever has run meanwhile sits out the first rounds."""
        ends: list[End] = []
        times_s = [(0, 0.0)]
        for group in self.groups:
            for row, steps in _longest_runs(group):
                at, time_s = times_s[-1]
                times_s.append((at + steps, time_s + steps * row[len(group)]))
            ends += [(*times_s[-1], work) for work in group if work.left]
        return Certificate(ends, times_s, afterwards)


@dataclass(frozen=True, slots=True)
class Holding:
    """A way to keep a set of promises: the certificate of the urgent ones, then block after block."""

    urgent: list[Work]
    blocks: list[Block]
    certificate: Certificate


def hold(
    works: Sequence[Work], start_s: float, view: View, *, num_urgent: Iterable[int], slowdown: float = 1.0
) -> Holding | None:
    """A way to keep all of these (in order of their deadlines) on a device that is free from `start_s`, or None.

    num_urgent: how many are planned one by one; of several numbers the first with which there is a way.
    slowdown: as if every step took so many times as long.
    """
    for count in num_urgent:
        holding = _hold(list(works[:count]), _blocks(works[count:], view), start_s, view, slowdown)
        if holding is not None or len(works) <= count:
            return holding
    return None


class Promises:
    """Promised requests that have steps to run, and a `Holding` that is valid as long as predictions are right.

    All of them may run, those in blocks too. As urgent ones end, others from the first block become urgent.

    num_urgent: how many are urgent then, at most.
    """

    def __init__(self, num_urgent: int) -> None:
        self._num_urgent = num_urgent
        self._refill_pause = 0
        self._holding = Holding([], [], Certificate.of_nothing())

    @property
    def urgent(self) -> list[Work]:
        """In order of their deadlines, like all lists here."""
        return self._holding.urgent

    @property
    def blocks(self) -> list[Block]:
        return self._holding.blocks

    @property
    def certificate(self) -> Certificate:
        return self._holding.certificate

    def all(self) -> list[Work]:
        return [*self.urgent, *(work for block in self.blocks for work in block.works)]

    def keep(self, holding: Holding) -> None:
        """From now on by this plan."""
        self._refill_pause = 0
        self._holding = holding

    def first(self, count: int) -> list[Work]:
        """The most urgent ones; any of them may run, those in blocks too."""
        later = chain.from_iterable(block.works for block in self.blocks)
        return [*self.urgent, *islice(later, max(0, count - len(self.urgent)))][:count]

    def let_go(self, ended: Iterable[Work]) -> None:
        """Forgets these, which have nothing left."""
        self._holding = Holding([work for work in self.urgent if work.left], self.blocks, self.certificate)
        self.certificate.let_go()
        last_due_s = max(work.due_s for work in ended)
        for block in self.blocks:
            if block.works and block.works[0].due_s > last_due_s:
                break
            block.works[:] = [work for work in block.works if work.left]

    def replan(self, start_s: float, view: View, *, slowdown: float = 1.0) -> bool:
        """Looks for a new way to keep everything from `start_s` on; False if the old one stays.

        slowdown: as in `hold`.
        """
        return self._has_held([work for work in self.urgent if work.left], self.blocks, start_s, view, slowdown)

    def refill(self, view: View) -> None:
        """Takes from the first block when few are left before it; not looked for every time."""
        if not self.blocks or 2 * len(self.urgent) > self._num_urgent:
            return
        if self._refill_pause and self.urgent:
            self._refill_pause -= 1
            return
        blocks = [block for block in self.blocks if block.works]
        if not blocks:
            return
        block, *later = blocks
        room = self._num_urgent - len(self.urgent)
        rest = [Block.of(block.works[room:])] if block.works[room:] else []
        if self._has_held([*self.urgent, *block.works[:room]], [*rest, *later], view.start_s, view):
            return
        if self.urgent:
            self._refill_pause = REPLAN_PAUSE
        else:
            self._holding = Holding(block.works, later, block.certificate(_afterwards(later)))

    def _has_held(
        self, urgent: list[Work], blocks: list[Block], start_s: float, view: View, slowdown: float = 1.0
    ) -> bool:
        holding = _hold(urgent, blocks, start_s, view, slowdown)
        if holding is not None:
            self._holding = holding
        return holding is not None


def _hold(urgent: list[Work], blocks: list[Block], start_s: float, view: View, slowdown: float = 1.0) -> Holding | None:
    correction = slowdown * view.costs.correction
    certificate = plan(urgent, start_s, max_batch=view.max_batch, correction=correction, afterwards=_afterwards(blocks))
    return None if certificate is None else Holding(urgent, blocks, certificate)


def _afterwards(blocks: Sequence[Block]) -> list[tuple[float, list[Work]]]:
    """(When it ends in seconds of the table from the start of the first block, what it runs) of every block."""
    return list(zip(accumulate(block.length_s for block in blocks), [block.works for block in blocks], strict=True))


def _blocks(works: Sequence[Work], view: View) -> list[Block]:
    starts = range(0, len(works), view.max_batch)
    return [Block.of(list(works[start : start + view.max_batch])) for start in starts]


def _groups(works: Sequence[Work]) -> list[list[Work]]:
    """Those that can run side by side to a common end: of one kind to the last step, or of the same runs."""
    groups: dict[object, list[Work]] = {}
    for work in works:
        alike = work.kind if work.run == len(work.runs) - 1 else work.runs
        groups.setdefault(alike, []).append(work)
    return list(groups.values())


def _length_s(group: Sequence[Work]) -> float:
    """Seconds of the table that a group takes which runs side by side to its end."""
    return sum(steps * row[len(group)] for row, steps in _longest_runs(group))


def _longest_runs(group: Sequence[Work]) -> list[tuple[tuple[float, ...], int]]:
    """(What a step costs, steps) of all that its longest member has to run."""
    longest = max(group, key=lambda work: work.left)
    later = zip(longest.rows[longest.run + 1 :], longest.runs[longest.run + 1 :], strict=True)
    return [(longest.row, longest.run_left), *((row, steps) for row, (_, steps) in later)]
