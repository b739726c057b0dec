"""How things would go on if nobody came any more: what the scheduler itself would do, played through on a copy.

Every function here uses the scheduler that it is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elit_serve.plans.progress import Progress
from elit_serve.scheduler.core import RequestScheduler
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.requests import Demand, Refusal

MAX_LAUNCHES = 256  # so far it is played through to find when a request would be taken: 25 ms of processor time
TRIES_APART = 1.03  # and between two tries the time must have grown by this factor, which bounds their number


@dataclass(frozen=True, kw_only=True)
class Course:
    """Some images played through, every step taking what is predicted for it.

    steps: of each image. started_s: when the first step of any of them begins; ended_s: when the last step of all is
    done; encoded_s: when all their files are there.
    """

    steps: tuple[Progress, ...]
    started_s: float
    ended_s: float
    encoded_s: float


def course_of(scheduler: RequestScheduler, demands: Sequence[Demand], now_s: float) -> Course | Refusal:
    """What becomes of these if they are submitted now, or why they are not taken."""
    refusal = scheduler.submit(demands, now_s)
    if refusal is not None:
        return refusal
    ids = {demand.request_id for demand in demands}
    steps = tuple(scheduler.progress_of(demand.request_id) for demand in demands)
    driver = _driver(scheduler, now_s)
    own_launches = []
    while any(own.at < demand.num_steps for own, demand in zip(steps, demands, strict=True)):
        started = driver.next_launch()
        assert started is not None, "whoever has steps left is run"
        if ids.intersection(started.launch.request_ids):
            own_launches.append(started)
    return Course(
        steps=steps,
        started_s=own_launches[0].start_s,
        ended_s=own_launches[-1].end_s,
        encoded_s=max(started.end_s + started.launch.answer_ms / 1000 for started in own_launches),
    )


def retry_after_s(
    scheduler: RequestScheduler, is_taken: Callable[[RequestScheduler, float], bool], now_s: float
) -> float:
    """After how many seconds a request would be taken that others are in the way of, and also one launch later, since
    nobody is back to the millisecond.

    is_taken: whether it would be by this scheduler at this time; may not change the scheduler.
    """
    next_try_s, taken_s = now_s, None
    num_steps, driver = scheduler.num_steps_left, _driver(scheduler, now_s)
    for _ in range(MAX_LAUNCHES):
        if (started := driver.next_launch()) is None:
            break
        start_s = started.start_s
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


def _driver(scheduler: RequestScheduler, now_s: float) -> Driver:
    """From when what is on the device is done, as predicted."""
    free_s = max(now_s, scheduler.busy_until_s)
    for launch in scheduler.outstanding:
        for request_id in scheduler.finished(launch.launch_id, free_s, has_decoded=True):
            scheduler.delivered(request_id, free_s)
    return Driver(scheduler, AsPredicted(), now_s=free_s, foretells=True)
