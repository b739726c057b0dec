"""`quality.json` of a model directory: what its plans are worth, measured, and how."""

from __future__ import annotations

from functools import cached_property
from itertools import chain, pairwise, repeat
from math import log, sqrt
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import Field, model_validator

from elit_serve.errors import InvalidInput, shown
from elit_serve.files.guidance import WrittenGuidance
from elit_serve.files.measured import (
    Divisor,
    EstimatedFigure,
    Figure,
    Level,
    Measured,
    Precision,
    ShapeName,
    read_measured,
)
from elit_serve.files.time_shift import WrittenShift
from elit_serve.files.writing import write_whole
from elit_serve.files.written_skips import WrittenSkips
from elit_serve.plans.bounds import MAX_COUNT, MAX_STEPS, MIN_MEASURED
from elit_serve.plans.changed_levels import step_weights
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import NO_SKIPS

QUALITY_SCALE = "floor / distance, at most 1: 1 is as close to the reference as unseen photographs are"
OWN_SCALE = (
    "floor / distance, at most 1: 1 is as close to the reference, pictures of the full plan, as others of this plan are"
)
MAX_SERVED_PLANS = 12  # each kind of step among them is measured at start-up
ROUNDING = 1e-6
LATE = [1 + count / 20 for count in range(61)]  # of which the best is taken: measurements tell no finer
MAX_FACTOR = 2.0  # neither a precision nor another time grid makes pictures twice as good


class PlanQuality(Measured):
    """One way to draw a picture, and how good it was.

    name: unique in the file.
    levels: runs of (level, number of steps at it), in the order of the steps.
    repeats: sets of `num_samples` pictures behind the figures, each with seeds of its own.
    distance: to the reference photographs, in the metric of the file.
    quality: on the scale of the file. Its interval leaves out the floor's, which moves all plans together.
    gflops: of one picture: every step, both passes.
    shape: of the samples, by its name; None is the model's only one.
    skips: what its steps use again of earlier ones; None is nothing.
    on_front: better than every cheaper plan, by more than the uncertainty of the difference.
    """

    name: str = Field(min_length=1, max_length=200)
    levels: tuple[tuple[Level, Annotated[int, Field(ge=1, le=MAX_STEPS)]], ...] = Field(min_length=1)
    guidance: WrittenGuidance
    time_shift: WrittenShift
    repeats: int = Field(ge=1, le=MAX_COUNT)
    distance: EstimatedFigure
    quality: EstimatedFigure
    gflops: Divisor
    on_front: bool
    shape: ShapeName | None = None
    skips: WrittenSkips | None = None

    @model_validator(mode="after")
    def _is_possible(self) -> PlanQuality:
        if not MIN_MEASURED <= self.quality.value <= 1:
            value = shown(self.quality.value)
            raise ValueError(f"plan {self.name}: quality {value} is not allowed; it lies in {MIN_MEASURED} to 1")
        if self.steps > MAX_STEPS:
            raise ValueError(f"plan {self.name}: {self.steps} steps are not allowed; at most {MAX_STEPS}")
        if self.guidance.method == "ag" and min(self.step_levels) <= self.guidance.weak_level:
            raise ValueError(f"plan {self.name}: autoguidance stays above its weak level")
        try:
            _ = self.plan
        except InvalidInput as error:
            raise ValueError(f"plan {self.name}: {error}") from None
        return self

    @cached_property
    def plan(self) -> Plan:
        return Plan(
            levels=self.step_levels,
            guidance=self.guidance,
            time_shift=self.time_shift,
            skips=self.skips or NO_SKIPS,
        )

    @property
    def steps(self) -> int:
        return sum(count for _, count in self.levels)

    @cached_property
    def step_levels(self) -> tuple[int, ...]:
        """One level for each step."""
        return tuple(chain.from_iterable(repeat(level, count) for level, count in self.levels))

    @property
    def mean_level(self) -> float:
        return sum(level * count for level, count in self.levels) / self.steps

    def is_guided_like(self, other: PlanQuality) -> bool:
        """Whether steps, levels and skips alone may differ."""
        return self.time_shift == other.time_shift and self.guidance.is_like(other.guidance)

    def is_sampled_like(self, other: Plan) -> bool:
        """Whether only the levels may differ."""
        own = self.plan
        is_alike = (own.strides, own.time_shift, own.skips) == (other.strides, other.time_shift, other.skips)
        return is_alike and other.guidance.is_like(self.guidance)


class PrecisionQuality(Measured):
    """What another precision makes of quality: that of a plan there over that of the same plan as it was measured.

    factor: the mean over `plans`, which have the same seeds on both sides. Its interval is of the pictures alone.
    plans: the ratio of each, by its name. Those on the front are measured if nobody says otherwise.
    provenance: command, date, device, versions.
    """

    factor: EstimatedFigure
    plans: dict[str, EstimatedFigure] = Field(min_length=1)
    provenance: dict[str, str | int | float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_possible(self) -> PrecisionQuality:
        for name, ratio in (("factor", self.factor), *self.plans.items()):
            if not MIN_MEASURED <= ratio.value <= MAX_FACTOR:
                raise ValueError(f"{name}: {shown(ratio.value)} is not allowed; above 0, at most {MAX_FACTOR:g}")
        return self


class GridQuality(Measured):
    """A picture on a changed time grid against one on the whole of it, by the same seeds.

    steps: of the whole grid. strides: runs of (stride, number of steps with it), in the order of the steps.
    repeats: sets of pictures behind the ratio. ratio: of quality, changed over whole. expected: what the rule says of
        it; of even grids, on which it rests, that is what was measured.
    """

    level: Level
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)]
    guidance: WrittenGuidance
    time_shift: WrittenShift
    strides: tuple[tuple[Annotated[int, Field(ge=1, le=MAX_STEPS)], Annotated[int, Field(ge=1, le=MAX_STEPS)]], ...]
    repeats: int = Field(ge=1, le=MAX_COUNT)
    ratio: EstimatedFigure
    expected: float = Field(ge=0, le=MAX_FACTOR)

    @model_validator(mode="after")
    def _is_possible(self) -> GridQuality:
        covered = sum(stride * count for stride, count in self.strides)
        if covered != self.steps:
            raise ValueError(f"strides come to {covered} steps of the grid, not to {self.steps}")
        return self


class GridsQuality(Measured):
    """What longer steps make of quality: see `plans.coarsening`, which has the rule.

    last: level -> the share of the loss that is lost at the last step, the one number of the rule, fitted to what was
        measured at this level.
    error: root mean square of what the rule says less what was measured, over the grids whose strides change. noise:
        that of the standard errors of these measurements.
    provenance: command, date, device, versions.
    """

    last: dict[Level, Annotated[float, Field(ge=0, le=1)]] = Field(min_length=1)
    error: Figure
    noise: Figure
    measured: tuple[GridQuality, ...] = Field(min_length=1)
    provenance: dict[str, str | int | float] = Field(default_factory=dict)


class Quality(Measured):
    """`quality.json`: every measured plan of one set of weights, and everything it was measured with.

    metric: what `distance` is called, as MobileNetV2-FD; features_sha256 is of what computes its features.
    reference: the photographs behind the distance, in words.
    num_samples: pictures in a repeat. size: of the pictures, as 640x384; None is the model's default.
    full_plan: the name of the plan whose pictures were the reference, where there were no photographs.
    prompts_sha256: of the prompts of a set's pictures, or of the captions in their place; None is classes or not known.
    floor: the distance of unseen photographs to the reference, at the same number; or of other pictures of `full_plan`.
    levels: level -> quality of the default plan with every step at this level; measured means under their least
        concave majorant that does not fall, because policies need both, and noise has neither.
    default: the name of the plan that the model recommends.
    precisions: what others than the one of the measurements make of quality; one that is absent is not measured.
    grids: what longer steps make of quality; None is not measured.
    provenance: command, date, device, versions, and as `dtype` the precision.
    """

    format_version: int = Field(default=1, ge=1, le=1)
    model: str
    model_hash: str = Field(pattern=r"^[0-9a-f]{12}$")
    metric: str
    features_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    reference: str
    num_samples: int = Field(ge=2, le=MAX_COUNT)
    size: str | None = Field(default=None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$")
    full_plan: str | None = None
    prompts_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    floor: EstimatedFigure
    scale: str = QUALITY_SCALE
    levels: dict[Level, Annotated[float, Field(ge=MIN_MEASURED, le=1)]] = Field(min_length=1)
    default: str
    plans: tuple[PlanQuality, ...] = Field(min_length=1)
    precisions: dict[Precision, PrecisionQuality] = Field(default_factory=dict)
    grids: GridsQuality | None = None
    provenance: dict[str, str | int | float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_consistent(self) -> Quality:
        problems = []
        grid = sorted(self.levels)
        slopes = [(self.levels[high] - self.levels[low]) / (high - low) for low, high in pairwise(grid)]
        if any(slope < 0 for slope in slopes) or any(b > a + ROUNDING for a, b in pairwise(slopes)):
            problems.append("quality must rise with the level, by less and less for each latent")
        names = [plan.name for plan in self.plans]
        problems += [
            f"plan {name} is there twice" for name in sorted({name for name in names if names.count(name) > 1})
        ]
        if self.default not in names:
            problems.append(f"the default plan, {self.default}, is not among the plans")
        if self.full_plan is not None and self.full_plan not in names:
            problems.append(f"the full plan, {self.full_plan}, is not among the plans")
        if not any(plan.on_front for plan in self.plans):
            problems.append("no plan is on the front")
        problems += self._precision_problems(names)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _precision_problems(self, names: list[str]) -> list[str]:
        if self.precisions and self.measured_in is None:
            return ["precisions: provenance must say as dtype what they are compared with"]
        problems = [
            f"precisions.{precision}.plans: {name} is not among the plans"
            for precision, other in self.precisions.items()
            for name in other.plans
            if name not in names
        ]
        if any(precision == self.measured_in for precision in self.precisions):
            problems.append(f"precisions: the plans themselves were measured in {self.measured_in}")
        return problems

    @property
    def measured_in(self) -> str | None:
        """The precision in which the plans were measured; None is not known."""
        dtype = self.provenance.get("dtype")
        return None if dtype is None else str(dtype)

    def factor_in(self, precision: str) -> Estimate | None:
        """What qualities are multiplied by in this precision; None where that was not measured."""
        if precision == self.measured_in:
            return Estimate(value=1.0, half_width=0.0)
        return next((other.factor for name, other in self.precisions.items() if name == precision), None)

    @property
    def front(self) -> tuple[PlanQuality, ...]:
        """Cheapest first."""
        return tuple(sorted((plan for plan in self.plans if plan.on_front), key=lambda plan: plan.gflops))

    def served(self, *, can_skip: bool) -> tuple[PlanQuality, ...]:
        """See `catalogue.ModelQuality.served`."""
        if can_skip or not any(plan.skips for plan in self.front):
            return _spread(self.front, MAX_SERVED_PLANS)
        computed = sorted((plan for plan in self.plans if not plan.skips), key=lambda plan: plan.gflops)
        front: list[PlanQuality] = []
        for plan in computed:
            if all(plan.quality.is_surely_above(other.quality) for other in front):
                front.append(plan)
        return _spread(tuple(front), MAX_SERVED_PLANS)

    @cached_property
    def late(self) -> float:
        """How much more late steps count than early ones where levels change, as `QualityTable.late`: fitted to the
        schedules of changing levels with the default plan's guidance; 1, so that all count alike, without any."""
        return min(LATE, key=self.late_error) if self._schedules else 1.0

    def late_error(self, late: float) -> float:
        """Root mean square of what it says of the schedules it is fitted to less what was measured of them; 0 of none.

        late: 1 is the plain mean.
        """
        return sqrt(fmean([self._schedule_error(plan, late) ** 2 for plan in self._schedules] or [0.0]))

    def _schedule_error(self, plan: PlanQuality, late: float) -> float:
        alone = self._worths_like(plan)
        worths = [alone[level] for level in plan.step_levels]
        return fmean(worths, step_weights([1] * plan.steps, late)) - plan.quality.value

    @cached_property
    def _schedules(self) -> list[PlanQuality]:
        """Of changing levels, each of which is measured alone as well."""
        default = self.plan(self.default)
        alike = [
            plan for plan in self.plans if len(plan.levels) > 1 and plan.is_guided_like(default) and not plan.skips
        ]
        return [plan for plan in alike if self._worths_like(plan).keys() >= set(plan.step_levels)]

    def _worths_like(self, plan: PlanQuality) -> dict[int, float]:
        """Of pictures at one level throughout, by the level, in as many steps with the same guidance."""
        alone = [other for other in self.plans if len(other.levels) == 1 and other.is_sampled_like(plan.plan)]
        return {other.step_levels[0]: other.quality.value for other in alone}

    def plan(self, name: str) -> PlanQuality:
        return next(plan for plan in self.plans if plan.name == name)


def _spread(front: tuple[PlanQuality, ...], count: int) -> tuple[PlanQuality, ...]:
    """At most `count` of them, cheapest first: both ends, and in between those nearest to even steps."""
    if len(front) <= count:
        return front
    low, high = log(front[0].gflops), log(front[-1].gflops)
    wanted = [low + (high - low) * index / (count - 1) for index in range(count)]
    nearest = {min(range(len(front)), key=lambda i: abs(log(front[i].gflops) - cost)) for cost in wanted}
    return tuple(front[index] for index in sorted(nearest))


def write_quality(quality: Quality, file: Path) -> None:
    """All of the file or none of it. Raises `InvalidInput` where it cannot be written."""
    write_whole(file, quality.model_dump_json(indent=1) + "\n", field="quality")


def read_quality(file: Path, *, model: Path | None = None) -> Quality:
    """A quality file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it."""
    missing = ("quality", "a quality.json of a model directory")
    return read_measured(Quality, file, file.name, model=model, missing=missing)
