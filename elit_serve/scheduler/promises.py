"""Everything that was promised, and the certificate that all of it can be kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial
from math import inf

from elit_serve.scheduler.certificate import Certificate, Entry, plan
from elit_serve.scheduler.policy_view import View
from elit_serve.scheduler.work import Lane, Work


@dataclass(frozen=True, slots=True)
class Block:
    """A batch full of requests that run together after everything due before. They and all later blocks may wait
    until `latest_start_s`."""

    works: list[Work]
    latest_start_s: float


@dataclass(frozen=True, slots=True)
class Holding:
    """A way to keep a set of promises: the certificate of the urgent ones, then block after block."""

    urgent: list[Work]
    blocks: list[Block]
    certificate: Certificate

    def steps(self, view: View) -> list[tuple[float, Callable[[], list[Work]]]]:
        """Moments of the plan, in order, and for each a way to get copies of what is left then."""
        later = [work for block in self.blocks for work in block.works]
        certificate, costs = self.certificate, view.costs
        steps: list[tuple[float, Callable[[], list[Work]]]] = []
        for at, time_s in certificate.times_s:
            steps.append((time_s, partial(lambda at: certificate.at_round(at, costs) + later, at)))
        for count, block in enumerate(self.blocks):
            time_s = steps[-1][0] + sum(_length_s(group, view) for group in _groups(block.works))
            steps.append((time_s, partial(lambda first: later[first:], (count + 1) * view.max_batch)))
        return steps


def hold(
    works: Sequence[Work], start_s: float, view: View, *, num_urgent: int, slowdown: float = 1.0
) -> Holding | None:
    """A way to keep all of these (in order of their deadlines) on a device that is free from `start_s`, or None.

    num_urgent: how many are planned one by one. slowdown: as if every step took so many times as long.
    """
    blocks = _blocks(works[num_urgent:], view, slowdown)
    return _hold(list(works[:num_urgent]), blocks, start_s, view, slowdown)


class Promises:
    """Promised requests that have steps to run, and a `Holding` that is valid as long as predictions are right.

    Only urgent ones may run; a block becomes urgent as those before it end.

    num_urgent: as in `hold`.
    """

    def __init__(self, num_urgent: int) -> None:
        self._num_urgent = num_urgent
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
        self._holding = holding

    def drop(self, work: Work) -> None:
        """A promised request has ended early."""
        if work in self.urgent:
            self.urgent.remove(work)
            self.certificate.drop(work)
        for block in self.blocks:
            if work in block.works:
                block.works.remove(work)

    def has_run(self, members: AbstractSet[Work]) -> None:
        """These have run a step, which the certificate allows."""
        self.certificate.has_run(members)
        self._remove_done()

    def replan(self, start_s: float, view: View, *, num_taken: int = 0) -> bool:
        """Looks for a new way to keep everything from `start_s` on; False if the old one stays.

        num_taken: so many blocks become urgent.
        """
        urgent = [work for work in self.urgent if work.left]
        urgent += [work for block in self.blocks[:num_taken] for work in block.works]
        holding = _hold(urgent, self.blocks[num_taken:], start_s, view)
        if holding is not None:
            self._holding = holding
        return holding is not None

    def refill(self, view: View) -> None:
        """Makes blocks urgent as long as few are left before them."""
        while self.blocks and len(self.urgent) < min(view.max_batch, self._num_urgent):
            if self.replan(view.start_s, view, num_taken=1):
                continue
            if self.urgent:
                return
            block, *later = self.blocks
            certificate = _in_groups(block.works, view.start_s, _latest_start_s(later), view)
            self._holding = Holding(block.works, later, certificate)

    def _remove_done(self) -> None:
        if any(not work.left for work in self.urgent):
            self._holding = Holding([work for work in self.urgent if work.left], self.blocks, self.certificate)


def _hold(urgent: list[Work], blocks: list[Block], start_s: float, view: View, slowdown: float = 1.0) -> Holding | None:
    until_s = _latest_start_s(blocks)
    certificate = plan(urgent, start_s, view.costs, max_batch=view.max_batch, slowdown=slowdown, until_s=until_s)
    return None if certificate is None else Holding(urgent, blocks, certificate)


def _latest_start_s(blocks: Sequence[Block]) -> float:
    return blocks[0].latest_start_s if blocks else inf


def _blocks(works: Sequence[Work], view: View, slowdown: float) -> list[Block]:
    blocks: list[Block] = []
    for first in reversed(range(0, len(works), view.max_batch)):
        chunk = list(works[first : first + view.max_batch])
        length_s = slowdown * sum(_length_s(group, view) for group in _groups(chunk))
        blocks.insert(0, Block(chunk, min(chunk[0].due_s, _latest_start_s(blocks)) - length_s))
    return blocks


def _groups(works: Sequence[Work]) -> list[list[Work]]:
    """Those that can run side by side to their ends: in their last lane, or at the very same point of the same runs."""
    groups: dict[object, list[Work]] = {}
    for work in works:
        alike = work.lane if work.run == len(work.runs) - 1 else (work.runs, work.run, work.run_left)
        groups.setdefault(alike, []).append(work)
    return list(groups.values())


def _length_s(group: Sequence[Work], view: View) -> float:
    """Seconds of a group that runs side by side to its end."""
    return sum(steps * view.costs.row_s(*lane)[len(group)] for lane, steps in _longest_runs(group))


def _longest_runs(group: Sequence[Work]) -> list[tuple[Lane, int]]:
    longest = max(group, key=lambda work: work.left)
    return [(longest.lane, longest.run_left), *longest.runs[longest.run + 1 :]]


def _in_groups(works: Sequence[Work], start_s: float, until_s: float, view: View) -> Certificate:
    """The plan that `Block.latest_start_s` was computed from: one group after the other."""
    entries: list[Entry] = []
    times_s = [(0, start_s)]
    for group in _groups(works):
        entries += [(work, times_s[-1][0], times_s[-1][0] + work.left) for work in group]
        for lane, steps in _longest_runs(group):
            at, time_s = times_s[-1]
            times_s.append((at + steps, time_s + steps * view.costs.row_s(*lane)[len(group)]))
    due_s = min([until_s, *(work.due_s for work in works)])
    return Certificate(entries, times_s, due_s - times_s[-1][1])
