"""What is left to run of a request, as the elastic policy plans with it."""

from __future__ import annotations

from copy import copy, deepcopy
from itertools import groupby

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.corrected import CorrectedCosts
from elit_serve.scheduler.lane import Lane
from elit_serve.scheduler.policy_view import Tracked


class Work:
    """A request with the steps it still needs, at the lowest levels that it allows.

    due_s: when its last step must have run, overhead and cushion taken off; `is_promised` says whether it must.
    order: its place among all others, in seconds like `due_s`.
    runs: (kind at the lowest level, steps) of all its steps in order; `run` is the index of the present one, `run_left`
        what is left of it, `left` what is left of all. lanes, ceilings: lane and highest level of each run. rows: what
        a step costs in each run, at every batch, in seconds of the table, as all costs here.
    kind: of the next step at its lowest level; `row` says what that costs. highest: up to which level it may run.
    solo_s: what all that is left costs alone on the device.
    """

    __slots__ = (
        "ceilings",
        "due_s",
        "highest",
        "is_promised",
        "kind",
        "lane",
        "lanes",
        "left",
        "lowest",
        "order",
        "request",
        "row",
        "rows",
        "run",
        "run_left",
        "runs",
        "solo_s",
    )

    kind: StepKind
    lane: Lane
    lowest: int
    row: tuple[float, ...]
    run_left: int

    def __init__(self, request: Tracked, costs: CorrectedCosts, *, due_s: float, order: float) -> None:
        demand = request.demand
        lowest = {pair: costs.levels_within(*pair)[0] for pair in set(demand.bounds)}
        lanes = {cap: Lane(demand.shape, cap) for cap in set(demand.weak_caps)}
        steps = [(lanes[cap], lowest[pair], pair[1]) for pair, cap in zip(demand.bounds, demand.weak_caps, strict=True)]
        runs = [(*alike, len(list(group))) for alike, group in groupby(steps)]
        self.request = request
        self.due_s = due_s
        self.order = order
        self.is_promised = demand.is_hard
        self.runs: tuple[tuple[StepKind, int], ...] = tuple((lane.at(low), steps) for lane, low, _, steps in runs)
        self.lanes = tuple(lane for lane, _, _, _ in runs)
        self.ceilings = tuple(max(low, highest) for _, low, highest, _ in runs)
        self.left = demand.num_steps
        self.rows = tuple(costs.row_s(kind) for kind, _ in self.runs)
        self.solo_s: float = sum(steps * row[1] for (_, steps), row in zip(self.runs, self.rows, strict=True))
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
        if self.left and self.run_left == self.runs[self.run][1]:
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

    def later(self, seconds: float) -> Work:
        """A copy that is due so much later."""
        moved = copy(self)
        moved.due_s += seconds
        moved.order += seconds
        return moved

    def promised(self, due_s: float) -> Work:
        """A copy that is promised to end by then."""
        moved = copy(self)
        moved.is_promised, moved.due_s, moved.order = True, due_s, due_s
        return moved

    def __deepcopy__(self, memo: dict[int, object]) -> Work:
        same = copy(self)  # its tuples never change
        memo[id(self)] = same
        same.request = deepcopy(self.request, memo)
        return same

    def _enter(self, run: int) -> None:
        self.run = run
        self.kind, self.run_left = self.runs[run]
        self.lane, self.lowest = self.lanes[run], self.kind.level
        self.row = self.rows[run]
        self.highest = self.ceilings[run]
