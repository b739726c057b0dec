"""What would become of a job, and what else it could have had: found out on a copy of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.order import Job
from elit_serve.errors import ElitError, Infeasible, Overloaded
from elit_serve.plans.plan import Plan
from elit_serve.scheduler import CostTable, RequestScheduler
from elit_serve.scheduler.menu import Crowd, Duration
from elit_serve.scheduler.rehearsal import Rehearsal, rehearse, retry_after_s
from elit_serve.scheduler.requests import Demand, Refusal

DRIFT = 1.01  # how far the correction of predictions moves between a refusal and the next try
ADMISSION_MS = 5.0  # from a request's arrival until the scheduler is asked
FULL = Refusal(reason="queue_full")  # where no slot is free


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
    min_latency_ms: the smallest target that should be asked for to have them so, as crowded as it is now.
    fits: whether the target leaves time, with the cushion that promises need. quality: measured; None is not known.
    """

    plan: Plan
    latency_ms: float
    alone_ms: float
    min_latency_ms: int
    fits: bool
    quality: float | None


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A job as it is asked for, before it has a plan. num_slots: pictures that may be in flight at most."""

    job: Job
    open_plans: OpenPlans | None
    num_slots: int

    def given(self, scheduler: RequestScheduler) -> Job:
        """With the plan that it would get from this scheduler, if it leaves that open."""
        return self.job if self.open_plans is None else self.open_plans.give(self.job, scheduler)

    def has_room(self, num_in_flight: int) -> bool:
        return num_in_flight + len(self.job.seeds) <= self.num_slots

    def is_taken(self, scheduler: RequestScheduler, now_s: float) -> bool:
        """Whether it would be if it came now, with as much time as it has."""
        if not self.has_room(scheduler.num_waiting + scheduler.num_running):
            return False
        given = replace(self, job=replace(self.job, arrived_s=now_s)).given(scheduler)
        return scheduler.would_take(_demands(given), now_s)


def foresee(asked: Asked, scheduler: RequestScheduler, now_s: float) -> Foresight:
    """See `Worker.foresee`. Uses up the scheduler: give a copy."""
    given = asked.given(scheduler)
    crowd = scheduler.crowd_with(len(given.seeds), now_s)
    course: Rehearsal | Refusal = FULL
    if asked.has_room(scheduler.num_waiting + scheduler.num_running):
        course = rehearse(scheduler, _demands(given), now_s)
    if isinstance(course, Refusal):
        return Foresight(job=given, crowd=crowd, course=_error_of(course, asked, scheduler, now_s))
    return Foresight(job=given, crowd=crowd, course=course)


def _error_of(refusal: Refusal, asked: Asked, scheduler: RequestScheduler, now_s: float) -> ElitError:
    if refusal.min_latency_ms is not None:
        return infeasible(asked, refusal.min_latency_ms, refusal.pace)
    return overloaded(refusal, asked, scheduler, now_s)


def overloaded(refusal: Refusal, asked: Asked, scheduler: RequestScheduler, now_s: float) -> Overloaded:
    """With the time after which the same request is taken if nobody else comes. Uses up the scheduler that refused it:
    give a copy."""
    return Overloaded(refusal.reason, retry_after_s(scheduler, asked.is_taken, now_s))


def infeasible(asked: Asked, min_latency_ms: float, pace: float) -> Infeasible:
    """With a smallest target that will do when the caller asks again with it."""
    return Infeasible(asked.job.latency_ms, target_to_ask_for(min_latency_ms), pace)


def _demands(job: Job) -> list[Demand]:
    """Its images, with ids that no worker gives: those count from 0."""
    return [job.demand(request_id) for request_id in range(-1, -1 - len(job.seeds), -1)]


def target_to_ask_for(min_latency_ms: float) -> int:
    """The target of a request that is sent later, where `min_latency_ms` is the smallest that can be met now."""
    return ceil(DRIFT * min_latency_ms + ADMISSION_MS)


def alternatives(
    foresight: Foresight,
    open_plans: OpenPlans | None,
    levels: Sequence[int],
    cost: CostTable,
    quality: ModelQuality | None,
) -> list[Alternative]:
    """Fastest first: the front of the open plans, or the job's own steps and guidance at each of `levels`."""
    job = foresight.job
    found = []
    if open_plans is None:
        for level in levels:
            plan = job.plan((level,) * job.num_steps)
            known = None if quality is None else quality.of(job.guidance, job.time_shift, plan.levels)
            duration = Duration.of(job.shape, plan.levels, job.weak_caps, cost)
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
        min_latency_ms=target_to_ask_for(duration.min_latency_ms(crowd, cost)),
        fits=duration.fits(within_ms, crowd),
        quality=quality,
    )
