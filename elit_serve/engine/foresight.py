"""What would become of a job, and what else it could have had: found out on a copy of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from elit_serve.engine.jobs import Job
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.errors import ElitError, Infeasible, Overloaded
from elit_serve.measurements import Quality
from elit_serve.sampling import Plan
from elit_serve.scheduler import CostTable, RequestScheduler
from elit_serve.scheduler.menu import Crowd, Duration
from elit_serve.scheduler.rehearsal import Rehearsal, rehearse
from elit_serve.scheduler.requests import Refusal

DRIFT = 1.01  # how far the correction of predictions moves between a refusal and the next try
ADMISSION_MS = 5.0  # from a request's arrival until the scheduler is asked


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """job: with the plan that it would be given, if it leaves that open. crowd: who would be in flight with it.

    course: how it would go on, or why it would be refused.
    """

    job: Job
    crowd: Crowd
    course: Rehearsal | ElitError


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way to make the pictures of a job, every step at its level or, in a schedule, below.

    latency_ms: when they would be there, as crowded as it is now; alone_ms: and on an idle device.
    fits: whether that is in time, with the cushion that promises need. quality: measured; None is not known.
    """

    plan: Plan
    latency_ms: float
    alone_ms: float
    fits: bool
    quality: float | None


def foresee(job: Job, open_plans: OpenPlans | None, scheduler: RequestScheduler, now_s: float) -> Foresight:
    """See `Worker.foresee`. Uses up the scheduler: give a copy."""
    given = job if open_plans is None else open_plans.give(job, scheduler)
    crowd = scheduler.crowd_with(len(job.seeds), now_s)
    unused_ids = range(-1, -1 - len(job.seeds), -1)  # a worker counts from 0
    course = rehearse(scheduler, [given.demand(request_id) for request_id in unused_ids], now_s)
    if isinstance(course, Refusal):
        return Foresight(job=given, crowd=crowd, course=error_of(course, given.latency_ms))
    return Foresight(job=given, crowd=crowd, course=course)


def error_of(refusal: Refusal, latency_ms: float) -> ElitError:
    """What a caller is told who is refused: a smallest target that will do when he asks again with it."""
    if refusal.min_latency_ms is not None:
        return Infeasible(latency_ms, ceil(DRIFT * refusal.min_latency_ms + ADMISSION_MS))
    assert refusal.retry_after_s is not None
    return Overloaded(refusal.reason, refusal.retry_after_s)


def alternatives(
    foresight: Foresight,
    open_plans: OpenPlans | None,
    levels: Sequence[int],
    cost: CostTable,
    quality: Quality | None,
) -> list[Alternative]:
    """Fastest first: the front of the open plans, or the job's own steps and guidance at each of `levels`."""
    job = foresight.job
    found = []
    if open_plans is None:
        for level in levels:
            plan = job.plan((level,) * job.num_steps)
            known = None if quality is None else quality.of(job.guidance, job.time_shift, plan.levels)
            duration = Duration.of(plan.levels, job.weak_caps, cost)
            found.append(_alternative(plan, duration, known, foresight, cost))
    else:
        for option in open_plans.menu.front:
            offered = open_plans.plans[option.plan.name]
            plan = replace(offered, levels=tuple(min(option.level, level) for level in offered.levels))
            found.append(_alternative(plan, option.duration, option.quality, foresight, cost))
    return found


def _alternative(
    plan: Plan, duration: Duration, quality: float | None, foresight: Foresight, cost: CostTable
) -> Alternative:
    job, crowd = foresight.job, foresight.crowd
    within_ms = (job.latency_ms - cost.overhead_ms) / crowd.correction
    return Alternative(
        plan=plan,
        latency_ms=duration.latency_ms(crowd, cost),
        alone_ms=duration.latency_ms(replace(crowd, in_flight=len(job.seeds)), cost),
        fits=duration.fits(within_ms, crowd),
        quality=quality,
    )
