"""Everything that was promised, and the certificate that all of it can be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from elit_serve.scheduler.certificate import Certificate, End, plan
from elit_serve.scheduler.policy_view import View
from elit_serve.scheduler.work import Work

REPLAN_PAUSE = 4  # decisions without a search for a new plan after one that found none


@dataclass(frozen=True, slots=True)
class Block:
    """A batch full of requests that run together after everything due before, for `length_s` seconds of the table."""

    works: list[Work]
    length_s: float


@dataclass(frozen=True, slots=True)
class Holding:
    """A way to keep a set of promises: the certificate of the urgent ones, then block after block."""

    urgent: list[Work]
    blocks: list[Block]
    certificate: Certificate

    def steps(self, view: View) -> list[tuple[float, Callable[[], list[Work]]]]:
        """Moments of the plan, in order, and for each a way to get copies of what is left then."""
        later = [work for block in self.blocks for work in block.works]
        certificate, correction = self.certificate, view.costs.correction
        steps: list[tuple[float, Callable[[], list[Work]]]] = []
        for at, time_s in certificate.times_s:
            left = partial(lambda at: certificate.at_round(at) + later, at)
            steps.append((view.start_s + correction * time_s, left))
        for count, block in enumerate(self.blocks):
            time_s = steps[-1][0] + correction * block.length_s
            steps.append((time_s, partial(lambda first: later[first:], (count + 1) * view.max_batch)))
        return steps


def hold(
    works: Sequence[Work], start_s: float, view: View, *, num_urgent: int, slowdown: float = 1.0
) -> Holding | None:
    """A way to keep all of these (in order of their deadlines) on a device that is free from `start_s`, or None.

    num_urgent: how many are planned one by one. slowdown: as if every step took so many times as long.
    """
    blocks = _blocks(works[num_urgent:], view)
    return _hold(list(works[:num_urgent]), blocks, start_s, view, slowdown)


class Promises:
    """Promised requests that have steps to run, and a `Holding` that is valid as long as predictions are right.

    Only urgent ones may run; a block becomes urgent as those before it end.

    num_urgent: as in `hold`.
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

    def drop(self, work: Work) -> None:
        """A promised request has ended early, and has nothing left."""
        self._refill_pause = 0
        self.let_go()
        for block in self.blocks:
            if work in block.works:
                block.works.remove(work)

    def let_go(self) -> None:
        """Forgets the urgent ones that have ended."""
        self._holding = Holding([work for work in self.urgent if work.left], self.blocks, self.certificate)
        self.certificate.let_go()

    def replan(self, start_s: float, view: View, *, num_taken: int = 0, slowdown: float = 1.0) -> bool:
        """Looks for a new way to keep everything from `start_s` on; False if the old one stays.

        num_taken: so many blocks become urgent. slowdown: as in `hold`.
        """
        urgent = [work for work in self.urgent if work.left]
        urgent += [work for block in self.blocks[:num_taken] for work in block.works]
        holding = _hold(urgent, self.blocks[num_taken:], start_s, view, slowdown)
        if holding is not None:
            self._holding = holding
        return holding is not None

    def refill(self, view: View) -> None:
        """Makes blocks urgent as long as few are left before them; not looked for every time."""
        while self.blocks and len(self.urgent) < min(view.max_batch, self._num_urgent):
            if self._refill_pause and self.urgent:
                self._refill_pause -= 1
                return
            if self.replan(view.start_s, view, num_taken=1):
                continue
            if self.urgent:
                self._refill_pause = REPLAN_PAUSE
                return
            block, *later = self.blocks
            certificate = _in_groups(block.works, _dues(later))
            self._holding = Holding(block.works, later, certificate)


def _hold(urgent: list[Work], blocks: list[Block], start_s: float, view: View, slowdown: float = 1.0) -> Holding | None:
    correction = slowdown * view.costs.correction
    certificate = plan(urgent, start_s, max_batch=view.max_batch, correction=correction, afterwards=_dues(blocks))
    return None if certificate is None else Holding(urgent, blocks, certificate)


def _dues(blocks: Sequence[Block]) -> list[tuple[float, float]]:
    """(When it ends in seconds of the table from the start of the first block, when it is due) of every block."""
    ends_s = accumulate(block.length_s for block in blocks)
    return [(end_s, block.works[0].due_s) for end_s, block in zip(ends_s, blocks, strict=True) if block.works]


def _blocks(works: Sequence[Work], view: View) -> list[Block]:
    chunks = [list(works[first : first + view.max_batch]) for first in range(0, len(works), view.max_batch)]
    return [Block(chunk, sum(_length_s(group) for group in _groups(chunk))) for chunk in chunks]


def _groups(works: Sequence[Work]) -> list[list[Work]]:
    """Those that can run side by side to their ends: in their last lane, or at the very same point of the same runs."""
    groups: dict[object, list[Work]] = {}
    for work in works:
        alike = work.lane if work.run == len(work.runs) - 1 else (work.runs, work.run, work.run_left)
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


def _in_groups(works: Sequence[Work], afterwards: Sequence[tuple[float, float]]) -> Certificate:
    """The plan that `Block.length_s` was computed from: one group after the other."""
    ends: list[End] = []
    times_s = [(0, 0.0)]
    for group in _groups(works):
        first, _ = times_s[-1]
        for row, steps in _longest_runs(group):
            at, time_s = times_s[-1]
            times_s.append((at + steps, time_s + steps * row[len(group)]))
        ends += [(first + work.left, times_s[-1][1], work) for work in group]
    return Certificate(ends, times_s, afterwards)
