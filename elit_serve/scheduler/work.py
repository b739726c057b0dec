"""What is left to run of a request, as the elastic policy plans with it."""

from __future__ import annotations

from copy import copy
from itertools import groupby

from elit_serve.scheduler.corrected import CorrectedCosts
from elit_serve.scheduler.policy_view import Tracked

Lane = tuple[int, int | None]  # (level, weak cap): equal next steps, which can share a launch


class Work:
    """A request with the steps it still needs, at the lowest levels that it allows.

    due_s: when its last step must have run, overhead and cushion taken off. order_s: its place among all others.
    runs: (lane, steps) of all its steps in order; `run` is the index of the present one, `run_left` what is left of it.
    solo_s: what is left alone on the device.
    """

    __slots__ = (
        "due_s",
        "is_dropped",
        "is_promised",
        "left",
        "order_s",
        "request",
        "run",
        "run_left",
        "runs",
        "solo_s",
    )

    def __init__(self, request: Tracked, costs: CorrectedCosts, *, due_s: float, order_s: float) -> None:
        demand = request.demand
        lowest = costs.levels_within(demand.min_level, demand.max_level)[0]
        levels = demand.pinned or (lowest,) * demand.num_steps
        lanes = zip(levels, demand.weak_caps, strict=True)
        self.request = request
        self.due_s = due_s
        self.order_s = order_s
        self.is_promised = demand.is_hard
        self.is_dropped = False
        self.runs: tuple[tuple[Lane, int], ...] = tuple((lane, len(list(steps))) for lane, steps in groupby(lanes))
        self.run, self.run_left = 0, self.runs[0][1]
        self.left = demand.num_steps
        self.solo_s = 0.0
        self.refresh(costs)

    @property
    def lane(self) -> Lane:
        """Of the next step."""
        return self.runs[self.run][0]

    @property
    def order(self) -> tuple[float, int]:
        return self.order_s, self.request.demand.request_id

    def pace_s(self, now_s: float, costs: CorrectedCosts) -> float:
        """How long its steps may take from now on, those of its present lane at least, for it to end in time."""
        return (self.due_s - now_s) / self.solo_s * costs.row_s(*self.lane)[1]

    def refresh(self, costs: CorrectedCosts) -> None:
        """Computes `solo_s` anew from these costs."""
        later = sum(steps * costs.row_s(*lane)[1] for lane, steps in self.runs[self.run + 1 :])
        self.solo_s = later + self.run_left * costs.row_s(*self.lane)[1]

    def advance(self, costs: CorrectedCosts) -> None:
        """One step has been decided."""
        self.solo_s -= costs.row_s(*self.lane)[1]
        self.left -= 1
        self.run_left -= 1
        if self.run_left == 0 and self.left:
            self.run += 1
            self.run_left = self.runs[self.run][1]

    def retreat(self, costs: CorrectedCosts) -> None:
        """Takes one `advance` back."""
        if self.left and self.run_left == self.runs[self.run][1]:
            self.run -= 1
            self.run_left = 0
        self.left += 1
        self.run_left += 1
        self.solo_s += costs.row_s(*self.lane)[1]

    def ahead(self, steps: int, costs: CorrectedCosts) -> Work:
        """A copy as it will be after so many more steps."""
        later = copy(self)
        for _ in range(steps):
            later.advance(costs)
        return later

    def later(self, seconds: float) -> Work:
        """A copy that is due so much later."""
        moved = copy(self)
        moved.due_s += seconds
        return moved

    def raised(self, level: int, now_s: float, costs: CorrectedCosts) -> Work:
        """A copy whose free steps run at up to this level: the highest of the table that it can make alone."""
        low, high = self.bounds()
        for candidate in reversed(costs.levels_within(low, max(low, min(level, high)))):
            higher = copy(self)
            higher.runs = tuple(((candidate, weak_cap), steps) for (_, weak_cap), steps in self.runs)
            higher.refresh(costs)
            if now_s + higher.solo_s <= self.due_s:
                return higher
        return self

    def bounds(self) -> tuple[int, int]:
        """The levels that its next step may run at: from, to."""
        demand = self.request.demand
        lowest = self.lane[0]
        return (lowest, lowest) if demand.pinned is not None else (lowest, max(demand.max_level, lowest))
