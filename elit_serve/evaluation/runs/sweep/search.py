"""The plan sweep: which ways to draw a picture are worth their FLOPs, measured where that is uncertain.

Every plan is measured once. Then those that may lie on the Pareto front of quality against FLOPs, as far as their
intervals tell, are measured again with other seeds, round after round, until none is in doubt or the budget is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.metrics import MeasuredSet, quality_of
from elit_serve.files.quality import PlanQuality
from elit_serve.nn import BackboneSpec
from elit_serve.nn.flops import step_flops
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.grid import Shift
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan, runs_of
from elit_serve.plans.skips import SkipRule

Told = Callable[[str], None]


class PlanEvaluator(Protocol):
    """Measures plans; what it has measured before, it remembers."""

    @property
    def floor(self) -> Estimate: ...

    def distances(self, sets: Iterable[tuple[Plan, int]]) -> Iterator[MeasuredSet]:
        """Of one set of pictures for each (plan, repeat), in this order; it may work on the next set already."""


@dataclass(frozen=True, kw_only=True)
class SweepGrid:
    """levels x steps x guidances x skips, at one level throughout and by every pair of `schedules`.

    schedules: pairs (low, high): the first half of the steps at one, the rest at the other, both ways round.
    skips: rules by which plans leave something out; by default none do. with_skips: a plan with what a rule skips.
    also: plans that are measured beside these.
    """

    levels: tuple[int, ...]
    steps: tuple[int, ...]
    guidances: tuple[Guidance, ...]
    schedules: tuple[tuple[int, int], ...] = ()
    time_shift: Shift = 1.0
    skips: tuple[SkipRule, ...] = (SkipRule(),)
    with_skips: Callable[[Plan, SkipRule], Plan] = lambda plan, _: plan
    also: tuple[Plan, ...] = ()

    def plans(self) -> tuple[Plan, ...]:
        """Each once, and of rules that skip equally much of a plan the first; autoguidance only where all levels lie
        above its weak level."""
        found = {plan_name(plan): plan for plan in self.also}
        for computed, rule in product(self._computed(), self.skips):
            plan = self.with_skips(computed, rule)
            found.setdefault(plan_name(plan), plan)
        return tuple(found.values())

    def _computed(self) -> tuple[Plan, ...]:
        """Those that skip nothing."""
        found: list[Plan] = []
        for steps, guidance in product(self.steps, self.guidances):
            half = steps // 2
            rising = [(low,) * half + (high,) * (steps - half) for low, high in self.schedules]
            falling = [(high,) * half + (low,) * (steps - half) for low, high in self.schedules]
            found += [
                Plan(levels=levels, guidance=guidance, time_shift=self.time_shift)
                for levels in [*((level,) * steps for level in self.levels), *rising, *falling]
                if min(levels) >= guidance.min_level
            ]
        return tuple(dict.fromkeys(found))


@dataclass(frozen=True, kw_only=True)
class SweptPlan:
    """A measured plan. quality is floor / distance, at most 1, without the uncertainty of the floor.

    images_per_second: of sampling alone.
    """

    plan: Plan
    gflops: float
    repeats: int
    distance: Estimate
    quality: Estimate
    images_per_second: float

    def with_more(self, other: SweptPlan) -> SweptPlan:
        """The mean with another measurement of the plan, by other seeds."""
        repeats = self.repeats + other.repeats
        weights = self.repeats, other.repeats
        rate = repeats / (self.repeats / self.images_per_second + other.repeats / other.images_per_second)
        return replace(
            self,
            repeats=repeats,
            distance=Estimate.mean([self.distance, other.distance], weights),
            quality=Estimate.mean([self.quality, other.quality], weights),
            images_per_second=rate,
        )


def run_sweep(
    plans: Sequence[Plan],
    evaluator: PlanEvaluator,
    spec: BackboneSpec,
    *,
    max_repeats: int,
    budget: int,
    first_repeat: int = 0,
    tell: Told = lambda _: None,
) -> tuple[SweptPlan, ...]:
    """Every plan measured, the doubtful ones up to `max_repeats` times.

    budget: measurements of one plan with one set of seeds, in all; the first round needs one for each plan.
    first_repeat: another one is a rerun with other seeds.
    """
    check_budget(budget, plans)

    def measured(plans: Sequence[tuple[Plan, int]]) -> Iterator[SweptPlan]:
        sets = evaluator.distances((plan, first_repeat + repeat) for plan, repeat in plans)
        for (plan, _), found in zip(plans, sets, strict=True):
            yield _point(plan, found, evaluator.floor.value, spec)

    points: dict[Plan, SweptPlan] = {}
    for point in measured([(plan, 0) for plan in plans]):
        points[point.plan] = point
        tell(f"{len(points)} of {len(plans)} plans")
    left = budget - len(plans)
    while left > 0:
        doubtful = [point for point in in_doubt(tuple(points.values())) if point.repeats < max_repeats]
        if not doubtful:
            break
        doubtful.sort(key=lambda point: (point.repeats, -point.quality.high))
        for more in measured([(point.plan, point.repeats) for point in doubtful[:left]]):
            points[more.plan] = points[more.plan].with_more(more)
            left -= 1
            tell(f"{len(doubtful)} plans in doubt, {left} measurements left")
    return tuple(points.values())


def check_budget(budget: int, plans: Sequence[Plan]) -> None:
    """Raises `InvalidInput` where it does not suffice for the first round."""
    if budget < len(plans):
        raise InvalidInput("max_measurements", budget, f"at least {len(plans)}, one for each plan")


def in_doubt(points: Sequence[SweptPlan]) -> list[SweptPlan]:
    """Those that may lie on the front: nothing as cheap is surely better."""
    surely, found = 0.0, []
    for point in sorted(points, key=lambda point: (point.gflops, -point.quality.value)):
        if point.quality.high > surely:
            found.append(point)
        surely = max(surely, point.quality.low)
    return found


def pareto_front(points: Sequence[SweptPlan]) -> list[SweptPlan]:
    """Those better than every cheaper one by more than the uncertainty of the difference, cheapest first.

    So their order holds when they are measured again with other seeds, but for one in twenty neighbours.
    """
    front: list[SweptPlan] = []
    for point in sorted(points, key=lambda point: (point.gflops, -point.quality.value)):
        if all(point.quality.is_surely_above(other.quality) for other in front):
            front.append(point)
    return front


def recommended(points: Sequence[SweptPlan], usual_gflops: float) -> SweptPlan:
    """The best plan of the front that keeps one level throughout and costs at most what the model's own sampling does
    at full budget; if there is none, the cheapest on the front that keeps one level. The front is that of plans that
    skip nothing."""
    front = pareto_front([point for point in points if not point.plan.skips])
    constant = [point for point in front if len(set(point.plan.levels)) == 1]
    if not constant:
        raise InvalidInput("levels", "no plan of one level on the front", "more levels, so that a default can be named")
    affordable = [point for point in constant if point.gflops <= usual_gflops * (1 + 1e-9)]
    return affordable[-1] if affordable else constant[0]


def level_curve(points: Sequence[SweptPlan], default: Plan) -> dict[int, float]:
    """level -> quality of the default plan at this level: the least concave majorant of the means that never falls."""
    means = {
        point.plan.levels[0]: point.quality.value
        for point in points
        if point.plan == default.at_level(point.plan.levels[0])
    }
    return concave_majorant(means)


def concave_majorant(means: Mapping[int, float]) -> dict[int, float]:
    """The smallest values at the same levels that lie nowhere below, never fall, and rise by less and less.

    >>> concave_majorant({1: 0.25, 2: 0.25, 3: 0.75, 4: 0.5})
    {1: 0.25, 2: 0.5, 3: 0.75, 4: 0.75}
    """
    levels = sorted(means)
    top = max(levels, key=lambda level: (means[level], -level))
    hull: list[int] = []
    for level in [level for level in levels if level <= top]:
        while len(hull) > 1 and _lies_below(means, hull[-2], hull[-1], level):
            hull.pop()
        hull.append(level)
    majorant = {}
    for level in levels:
        if level >= top:
            majorant[level] = means[top]
            continue
        low = max(corner for corner in hull if corner <= level)
        high = min(corner for corner in hull if corner > level)
        majorant[level] = means[low] + (means[high] - means[low]) * (level - low) / (high - low)
    return majorant


def _lies_below(means: Mapping[int, float], left: int, middle: int, right: int) -> bool:
    chord = means[left] + (means[right] - means[left]) * (middle - left) / (right - left)
    return means[middle] <= chord


def plan_gflops(plan: Plan, spec: BackboneSpec) -> float:
    """Of one picture: every step, both passes, counted as this code computes them."""
    return sum(step_flops(spec, kind) for kind in plan.step_kinds("")) / 1e9


def plan_name(plan: Plan) -> str:
    """As `40 steps at 16, ccfg 4.5/1 in 0.1-1, without 12 cores and 18 weak passes`."""
    left_out = {"cores": len(plan.skips.core), "weak passes": len(plan.skips.weak)}
    without = " and ".join(f"{count} {what}" for what, count in left_out.items() if count)
    return f"{_computed_name(plan)}, without {without}" if without else _computed_name(plan)


def _computed_name(plan: Plan) -> str:
    levels = "-".join(str(level) for level, _ in runs_of(plan.levels))
    guidance = plan.guidance
    if guidance.method == "none":
        return f"{plan.num_steps} steps at {levels}, unguided"
    weak = f"/{guidance.weak_level}" if guidance.has_weak_level else ""
    start, end = guidance.interval
    return f"{plan.num_steps} steps at {levels}, {guidance.method} {guidance.scale:g}{weak} in {start:g}-{end:g}"


def record_of(point: SweptPlan, *, on_front: bool) -> PlanQuality:
    """A point as `quality.json` holds it."""
    return PlanQuality(
        name=plan_name(point.plan),
        levels=runs_of(point.plan.levels),
        guidance=point.plan.guidance,
        time_shift=point.plan.time_shift,
        repeats=point.repeats,
        distance=point.distance,
        quality=point.quality,
        gflops=point.gflops,
        on_front=on_front,
        skips=point.plan.skips or None,
    )


def _point(plan: Plan, found: MeasuredSet, floor: float, spec: BackboneSpec) -> SweptPlan:
    """One set of pictures."""
    return SweptPlan(
        plan=plan,
        gflops=plan_gflops(plan, spec),
        repeats=1,
        distance=found.frechet,
        quality=quality_of(found.frechet, floor),
        images_per_second=found.images_per_second,
    )
