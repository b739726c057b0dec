"""What would become of an order, and what else it could have had: found out on a copy of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from elit_serve.catalogue import ModelQuality
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.order import Order
from elit_serve.errors import ElitError, Infeasible, Overloaded
from elit_serve.plans.plan import Plan
from elit_serve.scheduler import CostTable, RequestScheduler
from elit_serve.scheduler.forecast import Course, course_of, retry_after_s
from elit_serve.scheduler.menu import Crowd, Duration
from elit_serve.scheduler.requests import Demand, Refusal

DRIFT = 1.01  # how far the correction of predictions moves between a refusal and the next try
ADMISSION_MS = 5.0  # from a request's arrival until the scheduler is asked
FULL = Refusal(reason="queue_full")  # where no slot is free


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """order: with the plan that it would be given, if it leaves that open. crowd: who would be in flight with it.

    course: how it would go on, or why it would be refused.
    """

    order: Order
    crowd: Crowd
    course: Course | ElitError


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another way to make the pictures of an order, every step at its level or, in a schedule, below.

    latency_ms: when they would be there, as crowded as it is now; alone_ms: and on an idle device.
    min_latency_ms: the smallest target that should be asked for to have them so, as crowded as it is now.
    fits: whether the target leaves time, with the margin that promises need. quality: measured; None is not known.
    """

    plan: Plan
    latency_ms: float
    alone_ms: float
    min_latency_ms: int
    fits: bool
    quality: float | None


def forecast(order: Order, num_slots: int, scheduler: RequestScheduler, now_s: float) -> Forecast:
    """See `Worker.forecast`. num_slots: pictures that may be in flight at most. Uses up the scheduler: give a copy."""
    given = order.given(scheduler, now_s)
    crowd = scheduler.crowd_with(len(given.seeds), now_s)
    course: Course | Refusal = FULL
    if has_room(order, num_slots, scheduler.num_waiting + scheduler.num_running):
        course = course_of(scheduler, _demands(given), now_s)
    if isinstance(course, Refusal):
        return Forecast(order=given, crowd=crowd, course=_error_of(course, order, num_slots, scheduler, now_s))
    return Forecast(order=given, crowd=crowd, course=course)


def has_room(order: Order, num_slots: int, num_in_flight: int) -> bool:
    return num_in_flight + len(order.seeds) <= num_slots


def _error_of(refusal: Refusal, order: Order, num_slots: int, scheduler: RequestScheduler, now_s: float) -> ElitError:
    if refusal.min_latency_ms is not None:
        return infeasible(order, refusal.min_latency_ms, refusal.pace)
    return overloaded(refusal, order, num_slots, scheduler, now_s)


def overloaded(refusal: Refusal, order: Order, num_slots: int, scheduler: RequestScheduler, now_s: float) -> Overloaded:
    """With the time after which the same order is taken if nobody else comes. Uses up the scheduler that refused it:
    give a copy."""

    def is_taken(scheduler: RequestScheduler, at_s: float) -> bool:
        """Whether it would be if it came then, with as much time as it has."""
        if not has_room(order, num_slots, scheduler.num_waiting + scheduler.num_running):
            return False
        return scheduler.would_take(_demands(replace(order, arrived_s=at_s).given(scheduler, at_s)), at_s)

    return Overloaded(refusal.reason, retry_after_s(scheduler, is_taken, now_s))


def infeasible(order: Order, min_latency_ms: float, pace: float) -> Infeasible:
    """With a smallest target that will do when the caller asks again with it."""
    return Infeasible(order.latency_ms, target_to_ask_for(min_latency_ms), pace)


def _demands(order: Order) -> list[Demand]:
    """Its pictures, with ids that no worker gives: those count from 0."""
    return order.demands(range(-1, -1 - len(order.seeds), -1))


def target_to_ask_for(min_latency_ms: float) -> int:
    """The target of a request that is sent later, where `min_latency_ms` is the smallest that can be met now."""
    return ceil(DRIFT * min_latency_ms + ADMISSION_MS)


def alternatives(
    foreseen: Forecast,
    open_plans: OpenPlans | None,
    plans: Sequence[Plan],
    cost: CostTable,
    quality: ModelQuality | None,
) -> list[Alternative]:
    """Fastest first: the front of the open plans, or else `plans`."""
    order = foreseen.order
    found = []
    if open_plans is None:
        for plan in plans:
            known = None if quality is None else quality.of(plan)
            duration = Duration.of(order.shape, plan.levels, plan.weak_caps(cost.levels[-1]), cost, plan.skips.core)
            found.append(_alternative(plan, duration, known, foreseen, cost))
    else:
        for option in open_plans.menu.front:
            offered = open_plans.plans[option.plan.name]
            plan = replace(offered, levels=tuple(min(option.level, level) for level in offered.levels))
            found.append(_alternative(plan, option.duration, option.quality, foreseen, cost))
    return found


def _alternative(
    plan: Plan, duration: Duration, quality: float | None, foreseen: Forecast, cost: CostTable
) -> Alternative:
    order, crowd = foreseen.order, foreseen.crowd
    within_ms = (order.latency_ms - order.extra_ms - cost.after_ms(order.shape)) / crowd.correction
    return Alternative(
        plan=plan,
        latency_ms=duration.latency_ms(crowd) + order.extra_ms,
        alone_ms=duration.latency_ms(replace(crowd, in_flight=len(order.seeds))) + order.extra_ms,
        min_latency_ms=target_to_ask_for(duration.min_latency_ms(crowd) + order.extra_ms),
        fits=duration.fits(within_ms, crowd),
        quality=quality,
    )
