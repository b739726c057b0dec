"""Drives a scheduler against a simulated device on a virtual clock, as the server's worker drives it on a real one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import thread_time

from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.clock import VirtualClock
from elit_serve.scheduler.interface import Scheduler
from elit_serve.scheduler.requests import Demand, Launch, Refusal, Wait

ROUNDING_S = 1e-9


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a request.

    refusal: why it was not taken, or None.
    levels: of the steps that were run for it, in order.
    answered_s: when its picture was out; None if it never was.
    """

    demand: Demand
    refusal: Refusal | None
    levels: tuple[int, ...]
    answered_s: float | None

    @property
    def is_on_time(self) -> bool:
        return self.answered_s is not None and self.answered_s <= self.demand.deadline_s + ROUNDING_S

    @property
    def latency_s(self) -> float | None:
        return None if self.answered_s is None else self.answered_s - self.demand.arrived_s

    @property
    def mean_level(self) -> float:
        return sum(self.levels) / len(self.levels)


@dataclass(frozen=True, kw_only=True)
class Run:
    """outcomes: one per demand, in order. decision_s: seconds of processor time of each call of
    `decide`, which the machine's other work does not lengthen.

    launches: (level, batch, milliseconds) of everything that ran.
    """

    outcomes: tuple[Outcome, ...]
    decision_s: tuple[float, ...]
    launches: tuple[tuple[int, int, float], ...]


def simulate(scheduler: Scheduler, demands: Sequence[Demand], device: SimulatedDevice) -> Run:
    """Runs until nothing is left to run or to arrive. `demands` come in order of arrival."""
    return _Simulation(scheduler, demands, device).run()


class _Simulation:
    def __init__(self, scheduler: Scheduler, demands: Sequence[Demand], device: SimulatedDevice) -> None:
        self._scheduler, self._demands, self._device = scheduler, demands, device
        self._clock = VirtualClock(demands[0].arrived_s if demands else 0.0)
        self._coming = deque(demands)
        self._delivering: deque[tuple[float, int]] = deque()  # (when, request), in order of time
        self._refusals: dict[int, Refusal] = {}
        self._levels: dict[int, list[int]] = {demand.request_id: [] for demand in demands}
        self._answered_s: dict[int, float] = {}
        self._decision_s: list[float] = []
        self._launches: list[tuple[int, int, float]] = []

    def run(self) -> Run:
        while True:
            now_s = self._clock.now()
            self._advance_to(now_s)
            self._expire(now_s)
            decision = self._decide(now_s)
            if isinstance(decision, Launch):
                self._execute(decision)
            elif not self._wait(decision):
                return self._result()

    def _decide(self, now_s: float) -> Launch | Wait:
        began_s = thread_time()
        decision = self._scheduler.decide(now_s)
        self._decision_s.append(thread_time() - began_s)
        return decision

    def _execute(self, launch: Launch) -> None:
        """Arrivals while it runs are submitted when they happen, so admission sees a busy device."""
        took_ms = self._device.run_ms(launch)
        self._launches.append((launch.kind.level, len(launch.request_ids), took_ms))
        for request_id in launch.request_ids:
            self._levels[request_id].append(launch.kind.level)
        end_s = self._clock.now() + took_ms / 1000
        self._advance_to(end_s)
        for request_id in self._scheduler.finished(launch.launch_id, end_s, took_ms):
            self._delivering.append((end_s + self._device.overhead_s, request_id))

    def _expire(self, now_s: float) -> None:
        """A request may expire between its last step and its answer; nobody waits for that answer any more."""
        expired = self._scheduler.expire(now_s)
        self._delivering = deque(delivery for delivery in self._delivering if delivery[1] not in expired)
        for request_id in expired:
            self._scheduler.forget(request_id)

    def _wait(self, wait: Wait) -> bool:
        """Moves on to whatever happens next; False when nothing will."""
        now_s = self._clock.now()
        happenings = [time_s for time_s in (self._next_event_s(), wait.until_s) if time_s is not None]
        if not happenings:
            return False
        assert min(happenings) > now_s, f"asked to wait until {wait.until_s} at {now_s}"
        self._advance_to(min(happenings))
        return True

    def _advance_to(self, until_s: float) -> None:
        """Lets everything happen that happens up to then, in order."""
        while (event_s := self._next_event_s()) is not None and event_s <= until_s:
            self._clock.advance(max(0.0, event_s - self._clock.now()))
            if self._delivering and self._delivering[0][0] == event_s:
                self._deliver()
            else:
                self._submit()
        self._clock.advance(max(0.0, until_s - self._clock.now()))

    def _next_event_s(self) -> float | None:
        times = [queue_s for queue_s in (self._next_arrival_s(), self._next_delivery_s()) if queue_s is not None]
        return min(times, default=None)

    def _next_arrival_s(self) -> float | None:
        return self._coming[0].arrived_s if self._coming else None

    def _next_delivery_s(self) -> float | None:
        return self._delivering[0][0] if self._delivering else None

    def _submit(self) -> None:
        demand = self._coming.popleft()
        refusal = self._scheduler.submit([demand], demand.arrived_s)
        if refusal is not None:
            self._refusals[demand.request_id] = refusal

    def _deliver(self) -> None:
        answered_s, request_id = self._delivering.popleft()
        self._scheduler.delivered(request_id, answered_s)
        self._scheduler.forget(request_id)
        self._answered_s[request_id] = answered_s

    def _result(self) -> Run:
        outcomes = tuple(
            Outcome(
                demand=demand,
                refusal=self._refusals.get(demand.request_id),
                levels=tuple(self._levels[demand.request_id]),
                answered_s=self._answered_s.get(demand.request_id),
            )
            for demand in self._demands
        )
        return Run(outcomes=outcomes, decision_s=tuple(self._decision_s), launches=tuple(self._launches))
