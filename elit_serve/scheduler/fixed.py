"""The plain policy: every request at its highest level, earliest deadline first, equal next steps batched."""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import repeat
from math import ceil

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.corrected import CorrectedCosts
from elit_serve.scheduler.policy_view import Choice, Tracked, View
from elit_serve.scheduler.requests import Demand, Refusal


@dataclass(frozen=True, kw_only=True)
class _Queued:
    """levels: of every step, decided at admission."""

    request: Tracked
    levels: tuple[int, ...]

    @property
    def order(self) -> tuple[float, int]:
        return self.request.demand.deadline_s, self.request.request_id

    @property
    def next_kind(self) -> StepKind:
        demand, step = self.request.demand, self.request.next_step
        return StepKind.capped(demand.shape, self.levels[step], demand.weak_caps[step])


class FixedPolicy:
    """Promises nothing: only what is impossible even alone is refused, and late requests with hard deadlines expire.

    max_waiting: requests that have not started, beyond which newcomers are refused; None is no limit.
    """

    def __init__(self, *, max_waiting: int | None = None) -> None:
        self._max_waiting = max_waiting
        self._queue: list[_Queued] = []

    def admit(self, newcomers: Sequence[Tracked], view: View) -> Refusal | None:
        needed_s = self._needed_s(newcomers, view)
        if needed_s is not None:
            return Refusal(reason="infeasible", min_latency_ms=ceil(1000 * needed_s + 1e-3), pace=view.costs.correction)
        if self._is_full(newcomers, view):
            return Refusal(reason="queue_full")
        self._take(newcomers, view)
        return None

    def would_admit(self, newcomers: Sequence[Tracked], view: View) -> bool:
        return self._needed_s(newcomers, view) is None and not self._is_full(newcomers, view)

    def choose(self, view: View) -> Choice | None:
        if not self._queue:
            return None
        kind = self._queue[0].next_kind
        members = [queued for queued in self._queue if queued.next_kind == kind][: view.max_batch]
        for done in [member for member in members if member.request.steps_left == 1]:
            self._queue.remove(done)
        return Choice(members=[member.request for member in members], kind=kind)

    def resume(self, requests: Sequence[Tracked], view: View) -> None:
        self._queue = []
        self._take(requests, view)

    def drop(self, request: Tracked) -> None:
        self._queue = [queued for queued in self._queue if queued.request is not request]

    def _take(self, requests: Sequence[Tracked], view: View) -> None:
        for request in requests:
            queued = _Queued(request=request, levels=highest_levels(request.demand, view.costs))
            insort(self._queue, queued, key=lambda queued: queued.order)

    def _needed_s(self, newcomers: Sequence[Tracked], view: View) -> float | None:
        """What the longest of these takes alone, if that is too long for the first deadline."""
        needed_s = max(solo_s(newcomer.demand, view.costs) for newcomer in newcomers)
        hard_deadlines_s = [newcomer.demand.deadline_s for newcomer in newcomers if newcomer.demand.is_hard]
        return needed_s if hard_deadlines_s and view.now_s + needed_s > min(hard_deadlines_s) else None

    def _is_full(self, newcomers: Sequence[Tracked], view: View) -> bool:
        return self._max_waiting is not None and view.num_waiting + len(newcomers) > self._max_waiting


def solo_s(demand: Demand, costs: CorrectedCosts) -> float:
    """Seconds from the first step to the answer, alone on the device and at the highest allowed levels."""
    kinds = map(StepKind.capped, repeat(demand.shape), highest_levels(demand, costs), demand.weak_caps)
    return costs.overhead_s + costs.correction * sum(costs.row_s(kind)[1] for kind in kinds)


def highest_levels(demand: Demand, costs: CorrectedCosts) -> tuple[int, ...]:
    return tuple(costs.levels_within(*bounds)[-1] for bounds in demand.bounds)
