"""What is left to run of a request, and how long its steps may take for it to end in time."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import Answering, CorrectedCosts
from elit_serve.scheduler.policy.view import View
from elit_serve.scheduler.requests import Demand


class Ladder(NamedTuple):
    """Steps of one shape with one weak pass: those that run at the same level can share a launch.

    weak_cap: as in `Demand`, the highest level of the weak pass; None is a step without one. is_skipped: whether they
        skip their cores.
    """

    shape: str
    weak_cap: int | None
    is_skipped: bool = False

    def at(self, level: int) -> StepKind:
        """A step of this ladder at a level."""
        return _kind(self.shape, level, self.weak_cap, self.is_skipped)


# Equal values are one object each, so that they are compared at once
_ladder = lru_cache(maxsize=256)(Ladder)
_kind = lru_cache(maxsize=4096)(StepKind.capped)


class Run(NamedTuple):
    """Equal steps of a request in a row.

    kind: at the lowest level that they allow; row: what that costs at every batch, in seconds of the table, as all
    costs here. highest: the level up to which they may run.
    """

    ladder: Ladder
    kind: StepKind
    highest: int
    row: tuple[float, ...]
    steps: int


class Work:
    """A request with the steps it still needs, at the lowest levels that it allows.

    due_s: when its last step must have run, cushion and what follows it alone taken off; `is_promised` says whether it
        must.
    is_hurried: whether it is to end with the fewest steps, see `Policy.hurry`.
    order: its place among all others, in seconds like `due_s`.
    runs: all its steps; `run` is the index of the present one, `run_left` what is left of that, `left` of all.
    ladder, kind, lowest, highest, row: of the next step, see `Run`.
    solo_s: what all that is left costs alone on the device.
    answering: what decoding costs with others that end in the same launch; None where nothing is known of it. decode_s:
        its share of that where a whole batch ends together.
    """

    __slots__ = (
        "answering",
        "decode_s",
        "demand",
        "due_s",
        "highest",
        "is_hurried",
        "is_promised",
        "kind",
        "ladder",
        "left",
        "lowest",
        "order",
        "request_id",
        "row",
        "run",
        "run_left",
        "runs",
        "solo_s",
    )

    highest: int
    kind: StepKind
    ladder: Ladder
    lowest: int
    row: tuple[float, ...]
    run: int
    run_left: int

    def __init__(self, demand: Demand, costs: CorrectedCosts, *, due_s: float, order: float) -> None:
        self.demand, self.request_id = demand, demand.request_id
        self.due_s = due_s
        self.order = order
        self.is_promised = demand.is_hard
        self.is_hurried = False
        self.runs = _runs(demand, costs)
        self.answering: Answering | None = costs.answering(demand.shape)
        self.decode_s = 0.0 if self.answering is None else self.answering.decode_s[-1] / costs.table.max_batch
        self.left = demand.num_steps
        self.solo_s: float = sum(run.steps * run.row[1] for run in self.runs)
        self._enter(0)

    def advance(self) -> None:
        """One step has been decided."""
        self.left -= 1
        self.run_left -= 1
        self.solo_s -= self.row[1]
        if self.run_left == 0 and self.left:
            self._enter(self.run + 1)

    def retreat(self) -> None:
        """Takes one `advance` back."""
        if self.left and self.run_left == self.runs[self.run].steps:
            self._enter(self.run - 1)
            self.run_left = 0
        self.left += 1
        self.run_left += 1
        self.solo_s += self.row[1]

    def after(self, steps: int) -> Work:
        """The same after so many more steps."""
        for _ in range(steps):
            self.advance()
        return self

    def promised(self, due_s: float) -> Work:
        """A copy that is promised to end by then."""
        moved = copy(self)
        moved.is_promised, moved.due_s, moved.order = True, due_s, due_s
        return moved

    def allows(self, level: int) -> bool:
        """Whether the next step may run at this level."""
        return self.lowest <= level <= self.highest

    def _enter(self, run: int) -> None:
        self.run = run
        self.ladder, self.kind, self.highest, self.row, self.run_left = self.runs[run]
        self.lowest = self.kind.level


def _runs(demand: Demand, costs: CorrectedCosts) -> tuple[Run, ...]:
    lowest = {bounds: costs.levels_within(*bounds)[0] for bounds in set(demand.bounds)}
    runs = []
    for (cap, bounds, skips), alike in groupby(zip(demand.weak_caps, demand.bounds, demand.are_skipped, strict=True)):
        ladder = _ladder(demand.shape, cap, skips)
        kind = ladder.at(lowest[bounds])
        highest = max(bounds[1], kind.level)
        runs.append(Run(ladder, kind, highest, costs.row_s(kind), len(list(alike))))
    return tuple(runs)


def paces_s(works: Iterable[Work], view: View) -> list[float]:
    """How long their steps may take by the table, those of the present run at least, for each to end in time."""
    start_s, correction = view.start_s, view.costs.correction
    return [(work.due_s - start_s) / correction * work.row[1] / work.solo_s for work in works]
