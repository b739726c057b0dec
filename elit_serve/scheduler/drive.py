"""The one loop around a scheduler that is no server: simulator, forecast, decision bench and tests drive it so.

The server's worker makes the same calls in the same order, on a real clock. A launch is decided for the moment it will
start, which may lie ahead: while one runs on the device, the next may be decided for its predicted end. A decided
launch counts as run for every decision after it. Before each decision, late requests are told to expire.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import NamedTuple, Protocol

from elit_serve.plans.progress import Progress
from elit_serve.scheduler.requests import Demand, Launch, Refusal
from elit_serve.scheduler.state import State


class Scheduler(Protocol):
    """Pure: it reads no clock, and answers depend on earlier calls and `now_s` alone."""

    def submit(self, demands: Sequence[Demand], now_s: float) -> Refusal | None:
        """Takes all of these images, or none and says why."""

    def cancel(self, request_id: int, now_s: float) -> bool:
        """Ends a request that has not ended; False if it had, or is not known."""

    def expire(self, now_s: float) -> tuple[int, ...]:
        """Ends the requests whose hard deadline has passed, and names them."""

    def decide(self, start_s: float) -> Launch | None:
        """What the device runs next if it is free from `start_s`; None is nothing, until something is submitted."""

    def finished(
        self, launch_id: int, now_s: float, observed_ms: float | None = None, *, gap_ms: float | None = None
    ) -> tuple[int, ...]:
        """A launch has run; names the requests that it finished (now FINISHING). Cancelled ones are not among them.

        observed_ms: what it took on the device, from which predictions are corrected; None tells nothing. gap_ms: for
        how long the device had nothing to run before it, though there was work.
        """

    def failed(self, request_ids: Sequence[int], now_s: float) -> None:
        """These could not be run (or decoded); they end as FAILED. A launch they were in still needs `finished`."""

    def delivered(self, request_id: int, now_s: float) -> None:
        """The picture is out: FINISHING becomes DONE."""

    def progress_of(self, request_id: int) -> Progress:
        """Its steps decided so far; it goes on growing, and is only ever added to."""

    def state(self, request_id: int) -> State | None:
        """Where a request is; None when it is not known, or ended and forgotten."""

    def forget(self, request_id: int) -> None:
        """Drops an ended request from memory, once its caller has been told."""


class Device(Protocol):
    """What runs launches, on a virtual clock."""

    @property
    def overhead_s(self) -> float:
        """From the end of an image's last step to its answer, without what its launch tells; overlaps with the next
        step."""

    def gap_s(self, *, has_rested: bool) -> float:
        """How long a launch begins after the device was free and it was decided. has_rested: nothing ran until then."""

    def run_ms(self, launch: Launch) -> float:
        """How long a launch takes; asked once for each."""


class AsPredicted:
    """A device that takes for each step what is predicted for it, and nothing for an answer."""

    overhead_s = 0.0

    def gap_s(self, *, has_rested: bool) -> float:  # noqa: ARG002
        return 0.0

    def run_ms(self, launch: Launch) -> float:
        return launch.predicted_ms


class Launched(NamedTuple):
    """A launch on a device.

    took_ms: it ends so long after `start_s`. gap_ms: the device stood still for so long before, though there was work;
        None where it had rested.
    """

    launch: Launch
    start_s: float
    took_ms: float
    gap_ms: float | None

    @property
    def end_s(self) -> float:
        return self.start_s + self.took_ms / 1000

    @property
    def free_s(self) -> float:
        """When the device can run the next: it decodes those who end first, which takes what was predicted."""
        return self.end_s + self.launch.decode_ms / 1000


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a request that was taken. levels, strides: of the steps that were run for it."""

    state: State
    at_s: float
    levels: tuple[int, ...]
    strides: tuple[int, ...]


class Driver:
    """A scheduler on a device.

    now_s: of the virtual clock. depth: how many launches may be on the device at a time, one running and the others
        behind it. foretells: how it would go on, so that nothing is learnt from what launches take, and nobody expires.
    endings: of requests that have ended, by id; the scheduler has forgotten them. launches: all, in order; running:
        those that are on the device.
    """

    def __init__(
        self, scheduler: Scheduler, device: Device, *, now_s: float = 0.0, depth: int = 1, foretells: bool = False
    ) -> None:
        self.scheduler, self.now_s = scheduler, now_s
        self.endings: dict[int, Ended] = {}
        self.launches: list[Launched] = []
        self.running: deque[Launched] = deque()
        self._device, self._depth, self._foretells = device, depth, foretells
        self._free_s = now_s  # when the device has decoded whom the last launch that has ended ended
        self._delivering: list[tuple[float, int]] = []  # a heap of (when, request)

    def submit(self, demands: Sequence[Demand]) -> Refusal | None:
        """As `Scheduler.submit`, now."""
        return self.scheduler.submit(demands, self.now_s)

    def cancel(self, request_id: int) -> None:
        """As `Scheduler.cancel`, now."""
        if self.scheduler.cancel(request_id, self.now_s):
            self._end(request_id)

    def fail(self, request_ids: Sequence[int]) -> None:
        """As `Scheduler.failed`, now."""
        self.scheduler.failed(request_ids, self.now_s)
        for request_id in request_ids:
            if request_id not in self.endings:
                self._end(request_id)

    def advance_to(self, until_s: float) -> None:
        """Lets everything happen that happens before then; with infinity, until nothing is left to run."""
        if until_s <= self.now_s:
            return  # others may be submitted now, before anything is decided
        self._start_all()
        while (event_s := self._next_event_s()) < until_s:
            self._happen(event_s)
            self._start_all()
        if until_s < inf:
            self.now_s = max(self.now_s, until_s)

    def next_launch(self) -> Launched | None:
        """Goes on until one more launch is decided; None if nothing is left to run."""
        while (started := self.start()) is None and (event_s := self._next_event_s()) < inf:
            self._happen(event_s)
        return started

    def start(self) -> Launched | None:
        """Starts what the scheduler decides now, if the device takes one more; None if there is nothing to run."""
        if len(self.running) == self._depth:
            return None
        if not self._foretells:
            for request_id in self.scheduler.expire(self.now_s):
                self._end(request_id)
        start_s = max(self.now_s, self.running[-1].free_s if self.running else self._free_s)
        launch = self.scheduler.decide(start_s)
        if launch is None:
            return None
        has_rested = not self.running and start_s > self._free_s
        gap_s = self._device.gap_s(has_rested=has_rested)
        gap_ms = None if has_rested else 1000 * gap_s
        step_s = start_s + gap_s + launch.prepare_ms / 1000
        started = Launched(launch, step_s, self._device.run_ms(launch), gap_ms)
        self.running.append(started)
        self.launches.append(started)
        return started

    def finish(self) -> None:
        """Lets everything happen up to the end of the oldest launch on the device."""
        end_s = self.running[0].end_s
        while self.running and self.running[0].end_s <= end_s:
            self._happen(self._next_event_s())

    def forget(self) -> None:
        """Drops what was noted of launches and requests that are over, for whoever goes on for long."""
        still = {request_id for _, request_id in self._delivering}
        self.endings = {request_id: ended for request_id, ended in self.endings.items() if request_id in still}
        self.launches.clear()

    def ran(self, launch: Launch) -> None:
        """A launch has run, which is now to be reported; for whoever makes some of them fail."""

    def _start_all(self) -> None:
        while self.start() is not None:
            pass

    def _next_event_s(self) -> float:
        running_s = self.running[0].end_s if self.running else inf
        return min(running_s, self._delivering[0][0] if self._delivering else inf)

    def _happen(self, event_s: float) -> None:
        """The next event, at this time: an answer, or the end of a launch."""
        self.now_s = max(self.now_s, event_s)
        if self._delivering and self._delivering[0][0] <= event_s:
            _, request_id = heappop(self._delivering)
            if request_id not in self.endings:
                self.scheduler.delivered(request_id, self.now_s)
                self._end(request_id)
            return
        launched = self.running.popleft()
        launch = launched.launch
        self._free_s = max(self.now_s, launched.free_s)
        self.ran(launch)
        observed = (None, None) if self._foretells else (launched.took_ms, launched.gap_ms)
        for request_id in self.scheduler.finished(launch.launch_id, self.now_s, observed[0], gap_ms=observed[1]):
            heappush(self._delivering, (self.now_s + launch.answer_ms / 1000 + self._device.overhead_s, request_id))

    def _end(self, request_id: int) -> None:
        state = self.scheduler.state(request_id)
        assert state is not None, request_id
        assert request_id not in self.endings, "a request ends once"
        progress = self.scheduler.progress_of(request_id)
        levels, strides = tuple(progress.levels), tuple(progress.strides)
        self.endings[request_id] = Ended(state=state, at_s=self.now_s, levels=levels, strides=strides)
        self.scheduler.forget(request_id)
