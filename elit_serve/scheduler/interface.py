"""The scheduler as its drivers see it: the server's worker, the simulator, and tests drive the same calls.

A driver loops: `expire(now)`, `decide(start)`, run the launch, `finished(...)`, deliver, `delivered(...)`. A launch
is decided for the moment it will start, which may lie ahead: while one runs on the device, the next may be decided for
its predicted end. A decided launch counts as run for every decision after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from elit_serve.scheduler.requests import Demand, Launch, Refusal, State, Wait


class Scheduler(Protocol):
    """Pure: it reads no clock, and answers depend on earlier calls and `now_s` alone."""

    def submit(self, demands: Sequence[Demand], now_s: float) -> Refusal | None:
        """Takes all of these images, or none and says why."""

    def cancel(self, request_id: int, now_s: float) -> bool:
        """Ends a request that has not ended; False if it had, or is not known."""

    def expire(self, now_s: float) -> tuple[int, ...]:
        """Ends the requests whose hard deadline has passed, and names them."""

    def decide(self, start_s: float) -> Launch | Wait:
        """What the device runs next if it is free from `start_s`."""

    def finished(self, launch_id: int, now_s: float, observed_ms: float | None = None) -> tuple[int, ...]:
        """A launch has run; names the requests that it finished (now FINISHING). Cancelled ones are not among them.

        observed_ms: what it took on the device, from which predictions are corrected; None tells nothing.
        """

    def failed(self, request_ids: Sequence[int], now_s: float) -> None:
        """These could not be run (or decoded); they end as FAILED. A launch they were in still needs `finished`."""

    def delivered(self, request_id: int, now_s: float) -> None:
        """The picture is out: FINISHING becomes DONE."""

    def state(self, request_id: int) -> State | None:
        """Where a request is; None when it is not known, or ended and forgotten."""

    def forget(self, request_id: int) -> None:
        """Drops an ended request from memory, once its caller has been told."""
