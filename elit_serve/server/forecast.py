"""What would become of a request, as `/v1/plan` tells it."""

from __future__ import annotations

from statistics import fmean

from elit_serve.engine.forecast import Alternative, Forecast, alternatives
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.order import Order
from elit_serve.engine.served_model import ServedModel
from elit_serve.errors import ElitError, Infeasible, Overloaded
from elit_serve.http.faults import retry_after_ms
from elit_serve.http.schemas import GenerateRequest, GuidanceRequest
from elit_serve.plans.plan import Plan
from elit_serve.scheduler import CostTable
from elit_serve.scheduler.forecast import Course
from elit_serve.server.answers import guidance_used, mean_quality, rounded, skips_used, whole
from elit_serve.server.orders import usable_levels
from elit_serve.server.schemas import PlanAlternative, PlanCourse, PlanRefusal, PlanResponse


def plan_answer(
    request: GenerateRequest, foreseen: Forecast, open_plans: OpenPlans | None, model: ServedModel, cost: CostTable
) -> PlanResponse:
    """The answer to a dry run."""
    order, course = foreseen.order, foreseen.course
    others = alternatives(foreseen, open_plans, _plans(request, order, model, cost), cost, model.quality)
    return PlanResponse(
        model=model.config.name,
        **order.condition.facts(),
        size=str(model.sizes.size_of(order.shape)),
        n=len(order.seeds),
        latency_ms=request.latency_ms,
        promised=order.is_hard and isinstance(course, Course),
        quality_size=model.quality_size,
        accepted=isinstance(course, Course),
        course=_course(request, order, course, model, cost) if isinstance(course, Course) else None,
        refusal=_refusal(course) if isinstance(course, ElitError) else None,
        alternatives=[_alternative(request, other, model) for other in others],
    )


def _plans(request: GenerateRequest, order: Order, model: ServedModel, cost: CostTable) -> list[Plan]:
    """What requests would get that were like this one and fixed a level, one for each."""
    guidance = None if request.guidance == GuidanceRequest() else order.guidance
    levels = _levels(order, model, cost)
    return [
        model.plan(levels=[level] * order.num_steps, guidance=guidance, skips=order.skips, size=request.size)
        for level in levels
    ]


def _levels(order: Order, model: ServedModel, cost: CostTable) -> list[int]:
    """Those among which the scheduler would choose, or could if they were not pinned."""
    usable = usable_levels(order.plan_at(order.max_level), model.config.levels)
    bounded = [level for level in usable if order.min_level <= level <= order.max_level]
    return [level for level in bounded if level in cost.levels] or bounded[:1]


def _course(request: GenerateRequest, order: Order, course: Course, model: ServedModel, cost: CostTable) -> PlanCourse:
    plans = [order.plan(steps) for steps in course.steps]
    mean_level = fmean(plan.mean_level for plan in plans)
    latency_ms = 1000 * (course.encoded_s - order.arrived_s) + cost.overhead_ms + order.extra_ms
    return PlanCourse(
        steps=order.grid_steps,
        guidance=guidance_used(order.guidance, model.budgets),
        skips=skips_used(order.skips),
        level=whole(mean_level),
        budget=model.budgets.of_level(mean_level),
        levels=[list(plan.levels) for plan in plans],
        strides=[list(plan.strides) for plan in plans],
        queue_ms=round(1000 * (course.started_s - order.arrived_s), 3),
        latency_ms=round(latency_ms, 3),
        answer_ms=round(1000 * (course.encoded_s - course.ended_s) + cost.overhead_ms + order.extra_ms, 3),
        deadline_met=None if request.latency_ms is None else latency_ms <= request.latency_ms,
        quality=rounded(mean_quality(model, order, course.steps)),
        expected_quality=rounded(order.expected_quality),
    )


def _refusal(error: ElitError) -> PlanRefusal:
    return PlanRefusal(
        reason=error.reason if isinstance(error, Overloaded) else "infeasible",
        detail=str(error),
        min_latency_ms=error.min_latency_ms if isinstance(error, Infeasible) else None,
        retry_after_ms=retry_after_ms(error),
    )


def _alternative(request: GenerateRequest, other: Alternative, model: ServedModel) -> PlanAlternative:
    plan = other.plan
    return PlanAlternative(
        steps=plan.num_steps,
        guidance=guidance_used(plan.guidance, model.budgets),
        skips=skips_used(plan.skips),
        level=whole(plan.mean_level),
        budget=model.budgets.of_level(plan.mean_level),
        latency_ms=round(other.latency_ms, 3),
        alone_ms=round(other.alone_ms, 3),
        min_latency_ms=other.min_latency_ms,
        quality=rounded(other.quality),
        fits=None if request.latency_ms is None else other.fits,
    )
