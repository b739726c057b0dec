"""How things would go on if nobody came any more: what the scheduler itself would do, played through on a copy.

Every function here uses the scheduler that it is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.requests import Demand, Launch, Refusal

MAX_LAUNCHES = 256  # so far it is played through to find when a request would be taken: 25 ms of processor time
TRIES_APART = 1.03  # and between two tries the time must have grown by this factor, which bounds their number


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
    """What becomes of these if they are submitted now, or why they are not taken."""
    refusal = scheduler.submit(demands, now_s)
    if refusal is not None:
        return refusal
    ids = {demand.request_id for demand in demands}
    starts_s = []
    for start_s, launch in _launches(scheduler, now_s):
        if ids.intersection(launch.request_ids):
            starts_s.append(start_s)
        if all(len(scheduler.progress_of(demand.request_id)) == demand.num_steps for demand in demands):
            break
    levels = tuple(tuple(scheduler.progress_of(demand.request_id)) for demand in demands)
    return Rehearsal(levels=levels, started_s=starts_s[0], ended_s=scheduler.busy_until_s)


def retry_after_s(
    scheduler: RequestScheduler, is_taken: Callable[[RequestScheduler, float], bool], now_s: float
) -> float:
    """After how many seconds a request would be taken that others are in the way of, and also one launch later, since
    nobody is back to the millisecond.

    is_taken: whether it would be by this scheduler at this time; may not change the scheduler.
    """
    next_try_s, taken_s = now_s, None
    num_steps = scheduler.num_steps_left
    for start_s, _ in islice(_launches(scheduler, now_s), MAX_LAUNCHES):
        if taken_s is None and start_s < next_try_s:
            continue
        if not is_taken(scheduler, start_s):
            taken_s, next_try_s = None, now_s + TRIES_APART * (start_s - now_s)
        elif taken_s is None:
            taken_s = start_s
        else:
            break
    if taken_s is not None:
        return taken_s - now_s
    took_s = scheduler.busy_until_s - now_s
    done = num_steps - scheduler.num_steps_left
    return took_s * num_steps / done if done else took_s  # when all would be done at this rate


def _launches(scheduler: RequestScheduler, now_s: float) -> Iterator[tuple[float, Launch]]:
    """What will run, with the time of its start, while it is the only one outstanding; until nothing is left."""
    time_s = max(now_s, scheduler.busy_until_s)
    for launch in scheduler.outstanding:
        scheduler.finished(launch.launch_id, time_s)
    while isinstance(decision := scheduler.decide(time_s), Launch):
        yield time_s, decision
        time_s += decision.predicted_ms / 1000
        scheduler.finished(decision.launch_id, time_s)
