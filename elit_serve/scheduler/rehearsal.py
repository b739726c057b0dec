"""How a request would fare if nobody came after it: what the scheduler itself would do, played through on a copy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.requests import Demand, Launch, Refusal, State


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Some images played through, every step taking what is predicted for it.

    levels: of each image, one per step. started_s: when the first step of any of them begins; ended_s: when the last
    step of all is done.
    """

    levels: tuple[tuple[int, ...], ...]
    started_s: float
    ended_s: float


def rehearse(scheduler: RequestScheduler, demands: Sequence[Demand], now_s: float) -> Rehearsal | Refusal:
    """What becomes of these if they are submitted now, or why they are not taken.

    Uses the scheduler up: give a copy.
    """
    time_s = max(now_s, scheduler.busy_until_s)
    refusal = scheduler.submit(demands, now_s)
    if refusal is not None:
        return refusal
    for launch in scheduler.outstanding:
        scheduler.finished(launch.launch_id, time_s)
    ids = {demand.request_id for demand in demands}
    started_s: float | None = None
    while any(scheduler.state(request_id) is not State.FINISHING for request_id in ids):
        decision = scheduler.decide(time_s)
        assert isinstance(decision, Launch), "some of them have steps to run"
        if started_s is None and ids.intersection(decision.request_ids):
            started_s = time_s
        time_s += decision.predicted_ms / 1000
        scheduler.finished(decision.launch_id, time_s)
    assert started_s is not None
    levels = tuple(scheduler.levels_of(demand.request_id) for demand in demands)
    return Rehearsal(levels=levels, started_s=started_s, ended_s=time_s)
