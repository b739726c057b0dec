"""The plain policy: every request at its highest level, earliest deadline first, equal next steps batched."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from itertools import repeat
from math import ceil
from typing import Self

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.policy.view import Choice, Owed, View
from elit_serve.scheduler.requests import Demand, Refusal
from elit_serve.scheduler.state import Tracked


@dataclass(eq=False, kw_only=True)
class _Queued:
    """kinds: of all its steps, and lowest: at the lowest levels that they may; step: how many of them were chosen."""

    demand: Demand
    kinds: tuple[StepKind, ...]
    lowest: tuple[StepKind, ...]
    step: int = 0

    @property
    def order(self) -> tuple[float, int]:
        return self.demand.deadline_s, self.demand.request_id

    @property
    def next_kind(self) -> StepKind:
        return self.kinds[self.step]


class FixedPolicy:
    """Promises nothing: only what is impossible even alone is refused, and late requests with hard deadlines expire.

    max_waiting: requests that have not started, beyond which newcomers are refused; None is no limit.
    """

    def __init__(self, *, max_waiting: int | None = None) -> None:
        self._max_waiting = max_waiting
        self._queue: list[_Queued] = []

    def admit(
        self,
        newcomers: Sequence[Demand],
        view: View,
        *,
        is_passed_on: bool = False,  # noqa: ARG002
    ) -> Refusal | None:
        needed_s = self._needed_s(newcomers, view)
        if needed_s is not None:
            return Refusal(reason="infeasible", min_latency_ms=ceil(1000 * needed_s + 1e-3), pace=view.costs.correction)
        if self._is_full(newcomers, view):
            return Refusal(reason="queue_full")
        for demand in newcomers:
            self._take(demand, 0, view)
        return None

    def would_admit(self, newcomers: Sequence[Demand], view: View) -> bool:
        return self._needed_s(newcomers, view) is None and not self._is_full(newcomers, view)

    def choose(self, view: View) -> Choice | None:
        if not self._queue:
            return None
        kind = self._queue[0].next_kind
        members = [queued for queued in self._queue if queued.next_kind == kind][: view.max_batch]
        for member in members:
            member.step += 1
        self._queue = [queued for queued in self._queue if queued.step < len(queued.kinds)]
        ids = [member.demand.request_id for member in members]
        return Choice(request_ids=ids, kind=kind, levels=[kind.level] * len(ids), strides=[1] * len(ids))

    def resume(self, requests: Sequence[Tracked], view: View) -> None:
        self._queue = []
        for request in requests:
            self._take(request.demand, request.executed.at, view)
            if request.is_hurried:
                self.hurry(request.demand.request_id)

    def drop(self, request_id: int) -> None:
        self._queue = [queued for queued in self._queue if queued.demand.request_id != request_id]

    def hurry(self, request_id: int) -> None:
        for queued in self._queue:
            if queued.demand.request_id == request_id:
                queued.kinds = queued.lowest

    def owed(self, view: View) -> Sequence[Owed]:
        return [
            Owed(
                queued.demand.deadline_s - queued.demand.extra_s - view.costs.after_s(queued.demand.shape),
                sum(view.costs.row_s(kind)[-1] for kind in queued.kinds[queued.step :]) / view.costs.table.max_batch,
            )
            for queued in self._queue
        ]

    def copy(self) -> Self:
        twin = copy(self)
        twin._queue = [copy(queued) for queued in self._queue]
        return twin

    def _take(self, demand: Demand, step: int, view: View) -> None:
        highest, lowest = highest_kinds(demand, view.costs), lowest_kinds(demand, view.costs)
        queued = _Queued(demand=demand, kinds=highest, lowest=lowest, step=step)
        insort(self._queue, queued, key=lambda queued: queued.order)

    def _needed_s(self, newcomers: Sequence[Demand], view: View) -> float | None:
        """What the longest of these takes alone, if that is too long for the first deadline."""
        needed_s = view.prepare_s + max(solo_s(demand, view.costs) + demand.extra_s for demand in newcomers)
        hard_deadlines_s = [demand.deadline_s for demand in newcomers if demand.is_hard]
        return needed_s if hard_deadlines_s and view.now_s + needed_s > min(hard_deadlines_s) else None

    def _is_full(self, newcomers: Sequence[Demand], view: View) -> bool:
        return self._max_waiting is not None and view.num_waiting + len(newcomers) > self._max_waiting


def solo_s(demand: Demand, costs: CorrectedCosts) -> float:
    """Seconds from the first step to the answer, alone on the device and at the highest allowed levels."""
    return costs.after_s(demand.shape) + costs.correction * sum(
        costs.row_s(kind)[1] for kind in highest_kinds(demand, costs)
    )


def highest_kinds(demand: Demand, costs: CorrectedCosts) -> tuple[StepKind, ...]:
    """Of its steps, each at the highest level that it may."""
    levels = [costs.levels_within(*bounds)[-1] for bounds in demand.bounds]
    return tuple(map(StepKind.capped, repeat(demand.shape), levels, demand.weak_caps, demand.are_skipped))


def lowest_kinds(demand: Demand, costs: CorrectedCosts) -> tuple[StepKind, ...]:
    """The same at the lowest level that each may."""
    levels = [costs.levels_within(*bounds)[0] for bounds in demand.bounds]
    return tuple(map(StepKind.capped, repeat(demand.shape), levels, demand.weak_caps, demand.are_skipped))
