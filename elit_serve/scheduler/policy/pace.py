"""What is left to run of a request, and how long its steps may take for it to end in time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from copy import copy
from functools import lru_cache
from itertools import groupby
from math import sqrt
from typing import NamedTuple

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.mixing import Answering, Rung
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

    def across(self, levels: Collection[int]) -> StepKind:
        """A step whose members are at these levels."""
        return _kind(self.shape, max(levels), self.weak_cap, self.is_skipped, min(levels) < max(levels))


# Equal values are one object each, so that they are compared at once
_ladder = lru_cache(maxsize=256)(Ladder)
_kind = lru_cache(maxsize=4096)(StepKind.capped)


class Run(NamedTuple):
    """Equal longest steps of a request in a row, see `Work`.

    kind: at the lowest level that they allow; row: what that costs at every batch, in seconds of the table, as all
    costs here; rung: both, and whom it may share launches with. bounds: the levels from which up to which they may run.
    """

    ladder: Ladder
    kind: StepKind
    bounds: tuple[int, int]
    row: tuple[float, ...]
    rung: Rung
    steps: int


class Work:
    """A request with the fewest steps that it still needs, at the lowest levels that it allows.

    A step may be as long as `max_stride` steps of the request's time grid. Counted back from its end, the grid falls
    into stretches of so many, and the first has what is left over. Each is one longest step, wherever in it that
    begins, and all steps of a stretch are of one kind: guided if any is. So a shorter step costs time, but afterwards
    no more steps are needed than there are stretches left, and none of another kind.

    latest_s: when its last step must have run, what follows it alone taken off; `is_promised` says whether it must.
    due_s: until when it is planned to end: `margin_s` earlier with one longest step left, and √n times that with n,
        because deviations of n steps add up so. So it moves later from step to step, and plans outlive that.
    is_hurried: whether it is to end with the fewest steps, see `Policy.hurry`.
    order: its place among all others, in seconds like `latest_s`.
    at: how many steps of its grid have been decided. num_steps: of the grid.
    runs: all its stretches; `run` is the index of the present run, `run_left` what is left of that, `left` of all: the
        fewest steps that it needs.
    ladder, kind, bounds (lowest, highest), row, rung: of the next step, see `Run`.
    solo_s: what the fewest steps that are left cost alone on the device.
    decode_s: its share of decoding where a whole batch ends together.
    """

    __slots__ = (
        "_raised",
        "at",
        "bounds",
        "decode_s",
        "demand",
        "due_s",
        "highest",
        "is_hurried",
        "is_promised",
        "kind",
        "ladder",
        "latest_s",
        "left",
        "lowest",
        "margin_s",
        "max_stride",
        "num_steps",
        "order",
        "request_id",
        "row",
        "run",
        "run_left",
        "rung",
        "runs",
        "solo_s",
    )

    bounds: tuple[int, int]
    highest: int
    kind: StepKind
    ladder: Ladder
    lowest: int
    row: tuple[float, ...]
    run: int
    run_left: int
    rung: Rung

    def __init__(
        self, demand: Demand, costs: CorrectedCosts, *, latest_s: float, margin_s: float, order: float
    ) -> None:
        self.demand, self.request_id = demand, demand.request_id
        self.latest_s, self.margin_s = latest_s, margin_s
        self.order = order
        self.is_promised = demand.is_hard
        self.is_hurried = False
        self.runs = _runs(demand, costs)
        self.decode_s = 0.0 if self.answering is None else self.answering.decode_s[-1] / costs.table.max_batch
        self.at, self.num_steps, self.max_stride = 0, demand.num_steps, demand.max_stride
        self.left = -(-self.num_steps // self.max_stride)
        self.due_s = latest_s - margin_s * sqrt(self.left)
        self.solo_s: float = sum(run.steps * run.row[1] for run in self.runs)
        self._raised: dict[int, tuple[Run, ...]] = {}  # by level, see `raised`
        self._enter(0)

    def __copy__(self) -> Work:
        """As always, in a third of the time."""
        twin = Work.__new__(Work)
        for name in Work.__slots__:
            setattr(twin, name, getattr(self, name))
        return twin

    @property
    def answering(self) -> Answering | None:
        """What decoding costs with others that end in the same launch; None where nothing is known of it."""
        return self.runs[-1].rung.answering

    @property
    def batched_s(self) -> float:
        """What the fewest steps that are left cost as a share of the largest batch."""
        return self.solo_s * self.row[-1] / (self.row[1] * (len(self.row) - 1))

    @property
    def longest(self) -> int:
        """The largest stride that the next step may have."""
        return min(self.max_stride, self.num_steps - self.at)

    def advance(self, stride: int) -> None:
        """One step of this stride has been decided."""
        at = self.at = self.at + stride
        left = self.left - 1
        if at < self.num_steps - left * self.max_stride:
            return
        self.left = left
        run_left = self.run_left = self.run_left - 1
        self.due_s = self.latest_s - self.margin_s * sqrt(left)
        self.solo_s -= self.row[1]
        if run_left == 0 and left:
            self._enter(self.run + 1)

    def retreat(self, stride: int) -> None:
        """Takes one `advance` back."""
        self.at -= stride
        if self.at >= self.num_steps - self.left * self.max_stride:
            return
        if self.left and self.run_left == self.runs[self.run].steps:
            self._enter(self.run - 1)
            self.run_left = 0
        self.left += 1
        self.run_left += 1
        self.due_s = self.latest_s - self.margin_s * sqrt(self.left)
        self.solo_s += self.row[1]

    def moved_to(self, at: int) -> Work:
        """The same where so many steps of its grid have been decided."""
        while self.at < at:
            self.advance(min(self.max_stride, at - self.at))
        return self

    def raised(self, level: int, costs: CorrectedCosts) -> Work:
        """As if its steps had to run at this level, as far as they may, and were due as they are now: no more than a
        plan asks for, because an admission plans hundreds of them."""
        moved = Work.__new__(Work)
        moved.request_id = self.request_id
        moved.due_s, moved.left = self.due_s, self.left
        runs = self._raised.get(level)
        if runs is None:
            runs = self._raised[level] = _raised(self.runs, level, costs)
        moved.runs = runs
        moved._enter(self.run)
        moved.run_left = self.run_left
        later = moved.runs[self.run + 1 :] if self.left > self.run_left else ()
        moved.solo_s = self.run_left * moved.row[1] + sum([run.steps * run.row[1] for run in later])
        return moved

    def promised(self, latest_s: float) -> Work:
        """A copy whose last step is promised to have run by then."""
        moved = copy(self)
        moved.is_promised, moved.latest_s, moved.order = True, latest_s, latest_s
        moved.due_s = latest_s - self.margin_s * sqrt(self.left)
        return moved

    def allows(self, level: int) -> bool:
        """Whether the next step may run at this level."""
        return self.lowest <= level <= self.highest

    def _enter(self, run: int) -> None:
        self.run = run
        self.ladder, self.kind, self.bounds, self.row, self.rung, self.run_left = self.runs[run]
        self.lowest, self.highest = self.bounds


def _runs(demand: Demand, costs: CorrectedCosts) -> tuple[Run, ...]:
    runs = []
    for (cap, bounds, skips), alike in groupby(_stretches(demand)):
        ladder = _ladder(demand.shape, cap, skips)
        kind = ladder.at(costs.levels_within(*bounds)[0])
        rung = costs.rung(kind, cap)
        runs.append(Run(ladder, kind, (kind.level, max(bounds[1], kind.level)), rung.row_s, rung, len(list(alike))))
    return tuple(runs)


def _raised(runs: tuple[Run, ...], level: int, costs: CorrectedCosts) -> tuple[Run, ...]:
    """The same at this level, or as near to it as each allows."""
    raised = []
    for run in runs:
        lowest, highest = run.bounds
        kind = run.kind if run.ladder.is_skipped else run.ladder.at(max(lowest, min(level, highest)))
        rung = costs.rung(kind, run.ladder.weak_cap)
        raised.append(run._replace(kind=kind, row=rung.row_s, rung=rung))
    return tuple(raised)


def _stretches(demand: Demand) -> Iterator[tuple[int | None, tuple[int, int], bool]]:
    """(weak cap, levels from, to, whether its core is skipped) of each longest step, see `Work`: what any step of the
    grid in it needs, and every one allows. Plans that skip have no longer steps."""
    caps, bounds, stride = demand.weak_caps, demand.bounds, demand.max_stride
    if stride == 1:
        yield from zip(caps, bounds, demand.are_skipped, strict=True)
        return
    start, end = 0, (demand.num_steps - 1) % stride + 1
    while start < demand.num_steps:
        guided = [cap for cap in caps[start:end] if cap is not None]
        low, high = bounds[start]
        yield max(guided, default=None), (low, min(high, *(ceiling for _, ceiling in bounds[start:end]))), False
        start, end = end, end + stride


def paces_s(works: Iterable[Work], view: View) -> list[float]:
    """How long their longest steps may take by the table, of the present run at least, for each to end in time.

    As predicted, with nothing to spare: that is for what plans promise, and would only make pictures worse here.
    """
    start_s, correction = view.start_s, view.costs.correction
    return [(work.latest_s - start_s) / correction * work.row[1] / work.solo_s for work in works]
