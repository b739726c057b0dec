"""The measured files of a model directory, checked and read: `latency/<device>.json` and `quality.json`.

Knows no torch: whoever reads them without a model, as the simulator does, starts quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from itertools import chain, pairwise, repeat
from math import log
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from elit_serve.errors import CheckpointError, InvalidInput, shown
from elit_serve.files.opening import read_file
from elit_serve.files.validation import problems_in
from elit_serve.plans.bounds import (
    MAX_BATCH,
    MAX_COUNT,
    MAX_GUIDANCE_SCALE,
    MAX_LEVEL,
    MAX_MEASURED,
    MAX_MS,
    MAX_STEPS,
    MAX_TIME_SHIFT,
    MIN_MEASURED,
    MIN_MS,
    MIN_TIME_SHIFT,
)
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.guidance import Guidance, GuidanceMethod
from elit_serve.plans.plan import Plan
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler.cost import CostTable
from elit_serve.scheduler.quality import MeasuredPlan, QualityTable

MAX_FILE_BYTES = 1 << 20


class Measured(BaseModel):
    """Unknown fields are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


Level = Annotated[int, Field(ge=1, le=MAX_LEVEL)]
Figure = Annotated[float, Field(ge=0, le=MAX_MEASURED)]
Divisor = Annotated[float, Field(ge=MIN_MEASURED, le=MAX_MEASURED)]


class StepCost(Measured):
    """One measurement: a step of `batch` images at `level`, guided at `weak_level` or unguided.

    spread_ms: half the distance between the 10th and the 90th percentile of the repeats.
    is_interpolated: not measured, but read off a line through others of the same batch.
    """

    level: Level
    weak_level: Level | None = None
    batch: int = Field(ge=1, le=MAX_BATCH)
    step_ms: float = Field(ge=MIN_MS, le=MAX_MS)
    spread_ms: float = Field(default=0.0, ge=0, le=MAX_MS)
    is_interpolated: bool = False


class Latency(Measured):
    """`latency/<device>.json`: measured milliseconds, and everything they were measured with.

    backbone_hash: of the backbone's shape, which decides the cost whatever the weights.
    dtype: what the model computes in; `fp8` for a quantised one.
    threads: CPU threads, or None on a GPU.
    graphs: whether steps were CUDA graphs captured for these batches, so that other batches are padded to the next.
    overhead_ms: from the end of an image's last step to its encoded file.
    command: what was run to measure.
    """

    format_version: int = Field(default=2, ge=2, le=2)
    model: str
    backbone_hash: str
    device: str
    dtype: str
    threads: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    graphs: bool = False
    torch_version: str
    elit_serve_version: str
    date: datetime = Field(strict=False)
    command: str = ""
    repeats: int = Field(ge=1, le=MAX_COUNT)
    overhead_ms: float = Field(ge=0, le=MAX_MS)
    steps: tuple[StepCost, ...] = Field(min_length=2, strict=False)

    @model_validator(mode="after")
    def _is_complete(self) -> Latency:
        if len({step.weak_level is None for step in self.steps}) != 2:
            raise ValueError("both guided and unguided steps are needed")
        by_batch: dict[int, set[tuple[int, int | None]]] = {}
        for step in self.steps:
            by_batch.setdefault(step.batch, set()).add((step.level, step.weak_level))
        if len({frozenset(points) for points in by_batch.values()}) != 1:
            raise ValueError("every (level, weak_level) must be measured at the same batches")
        return self

    @property
    def cost_table(self) -> CostTable:
        """For whoever knows no model: the shape that was measured is called "only"."""
        return self.cost_table_for("only")

    def cost_table_for(self, shape: str) -> CostTable:
        """shape: the name of the one that was measured, the model's only one."""
        return CostTable(
            steps_ms={(StepKind(shape, step.level, step.weak_level), step.batch): step.step_ms for step in self.steps},
            overhead_ms=self.overhead_ms,
            pads_batches=self.graphs,
        )


QUALITY_SCALE = "floor / distance, at most 1: 1 is as close to the reference as unseen photographs are"
MAX_SERVED_PLANS = 12  # each kind of weak pass among them is captured and measured at start-up
ROUNDING = 1e-6


def _is_figure(estimate: Estimate) -> Estimate:
    for name in ("value", "half_width"):
        number = getattr(estimate, name)
        if not 0 <= number <= MAX_MEASURED:
            raise ValueError(f"{name} {shown(number)} is not allowed; it lies in 0 to {MAX_MEASURED:g}")
    return estimate


EstimatedFigure = Annotated[Estimate, AfterValidator(_is_figure)]


class MeasuredGuidance(Measured):
    """As `sampling.Guidance`. weak_level has no meaning for `none` and `cfg`."""

    method: GuidanceMethod
    scale: float = Field(ge=1, le=MAX_GUIDANCE_SCALE)
    weak_level: Level
    interval: tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]]

    @property
    def guidance(self) -> Guidance:
        return Guidance(method=self.method, scale=self.scale, weak_level=self.weak_level, interval=self.interval)

    @model_validator(mode="after")
    def _interval_rises(self) -> MeasuredGuidance:
        if self.interval[0] > self.interval[1]:
            raise ValueError("the interval must not end before it starts")
        return self


class PlanQuality(Measured):
    """One way to draw a picture, and how good it was.

    name: unique in the file.
    levels: runs of (level, number of steps at it), in the order of the steps.
    repeats: sets of `num_samples` pictures behind the figures, each with seeds of its own.
    distance: to the reference photographs, in the metric of the file.
    quality: on the scale of the file. Its interval leaves out the floor's, which moves all plans together.
    gflops: of one picture: every step, both passes.
    on_front: better than every cheaper plan, by more than the uncertainty of the difference.
    """

    name: str = Field(min_length=1, max_length=200)
    levels: tuple[tuple[Level, Annotated[int, Field(ge=1, le=MAX_STEPS)]], ...] = Field(min_length=1)
    guidance: MeasuredGuidance
    time_shift: float = Field(ge=MIN_TIME_SHIFT, le=MAX_TIME_SHIFT)
    repeats: int = Field(ge=1, le=MAX_COUNT)
    distance: EstimatedFigure
    quality: EstimatedFigure
    gflops: Divisor
    on_front: bool

    @model_validator(mode="after")
    def _is_possible(self) -> PlanQuality:
        if not MIN_MEASURED <= self.quality.value <= 1:
            value = shown(self.quality.value)
            raise ValueError(f"plan {self.name}: quality {value} is not allowed; it lies in {MIN_MEASURED} to 1")
        if self.steps > MAX_STEPS:
            raise ValueError(f"plan {self.name}: {self.steps} steps are not allowed; at most {MAX_STEPS}")
        if self.guidance.method == "ag" and min(self.step_levels) <= self.guidance.weak_level:
            raise ValueError(f"plan {self.name}: autoguidance stays above its weak level")
        return self

    @property
    def plan(self) -> Plan:
        return Plan(levels=self.step_levels, guidance=self.guidance.guidance, time_shift=self.time_shift)

    @property
    def steps(self) -> int:
        return sum(count for _, count in self.levels)

    @property
    def step_levels(self) -> tuple[int, ...]:
        """One level for each step."""
        return tuple(chain.from_iterable(repeat(level, count) for level, count in self.levels))

    @property
    def mean_level(self) -> float:
        return sum(level * count for level, count in self.levels) / self.steps

    def is_sampled_like(self, guidance: Guidance, num_steps: int, time_shift: float) -> bool:
        """Whether only the levels may differ."""
        same_grid = (num_steps, time_shift) == (self.steps, self.time_shift)
        return same_grid and guidance.is_like(self.guidance.guidance)


class Quality(Measured):
    """`quality.json`: every measured plan of one set of weights, and everything it was measured with.

    metric: what `distance` is called, as MobileNetV2-FD; features_sha256 is of what computes its features.
    reference: the photographs behind the distance, in words.
    num_samples: pictures in a repeat.
    floor: the distance of unseen photographs to the reference, at the same number.
    levels: level -> quality of the default plan with every step at this level; measured means under their least
        concave majorant that does not fall, because policies need both, and noise has neither.
    default: the name of the plan that the model recommends.
    provenance: command, date, device, versions.
    """

    format_version: int = Field(default=1, ge=1, le=1)
    model: str
    model_hash: str = Field(pattern=r"^[0-9a-f]{12}$")
    metric: str
    features_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    reference: str
    num_samples: int = Field(ge=2, le=MAX_COUNT)
    floor: EstimatedFigure
    scale: str = QUALITY_SCALE
    levels: dict[Level, Annotated[float, Field(ge=MIN_MEASURED, le=1)]] = Field(min_length=1)
    default: str
    plans: tuple[PlanQuality, ...] = Field(min_length=1)
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
        if not any(plan.on_front for plan in self.plans):
            problems.append("no plan is on the front")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def front(self) -> tuple[PlanQuality, ...]:
        """Cheapest first."""
        return tuple(sorted((plan for plan in self.plans if plan.on_front), key=lambda plan: plan.gflops))

    @property
    def served(self) -> tuple[PlanQuality, ...]:
        """What a server offers: the front or, of a long one, plans spread evenly over the logarithm of cost."""
        return _spread(self.front, MAX_SERVED_PLANS)

    @cached_property
    def table(self) -> QualityTable:
        """What the scheduler reads."""
        return QualityTable(levels=self.levels, plans=tuple(self._measured(plan) for plan in self.served))

    def plan(self, name: str) -> PlanQuality:
        return next(plan for plan in self.plans if plan.name == name)

    def of(self, guidance: Guidance, time_shift: float, levels: Sequence[int]) -> float | None:
        """The quality of a picture whose steps ran at these levels; None if nothing was measured with its steps and
        guidance.

        As `QualityTable.of_plan` has it.
        """
        alike = [plan for plan in self.plans if plan.is_sampled_like(guidance, len(levels), time_shift)]
        if not alike:
            return None
        measured = next((plan for plan in alike if plan.step_levels == tuple(levels)), alike[0])
        return self.table.of_plan(self._measured(measured), levels)

    def _alike(self, plan: PlanQuality) -> list[PlanQuality]:
        return [
            other for other in self.plans if other.is_sampled_like(plan.guidance.guidance, plan.steps, plan.time_shift)
        ]

    def _measured(self, plan: PlanQuality) -> MeasuredPlan:
        """As the scheduler has it."""
        full_level = max([*self.levels, *(max(plan.step_levels) for plan in self.plans)])
        return MeasuredPlan(
            name=plan.name,
            weak_caps=plan.plan.weak_caps(full_level),
            ceilings=plan.step_levels,
            quality=plan.quality.value,
            levels=self._curve_of(self._alike(plan)),
            min_level=plan.guidance.guidance.min_level,
        )

    def _curve_of(self, alike: Sequence[PlanQuality]) -> dict[float, float]:
        """Level -> quality of these plans, those of one level if there are such; mean level -> the best otherwise."""
        of_one_level = [plan for plan in alike if len(set(plan.step_levels)) == 1]
        by_quality = sorted(of_one_level or alike, key=lambda plan: plan.quality.value)
        return {plan.mean_level: plan.quality.value for plan in by_quality}


def _spread(front: tuple[PlanQuality, ...], count: int) -> tuple[PlanQuality, ...]:
    """At most `count` of them, cheapest first: both ends, and in between those nearest to even steps."""
    if len(front) <= count:
        return front
    low, high = log(front[0].gflops), log(front[-1].gflops)
    wanted = [low + (high - low) * index / (count - 1) for index in range(count)]
    nearest = {min(range(len(front)), key=lambda i: abs(log(front[i].gflops) - cost)) for cost in wanted}
    return tuple(front[index] for index in sorted(nearest))


def read_latency(file: Path, *, model: Path | None = None) -> Latency:
    """A latency file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it."""
    name = f"latency/{file.name}" if model else file.name
    return _read(Latency, file, name, model=model, missing=("cost", "a latency/<device>.json of a model directory"))


def read_quality(file: Path, *, model: Path | None = None) -> Quality:
    """A quality file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it."""
    return _read(Quality, file, file.name, model=model, missing=("quality", "a quality.json of a model directory"))


M = TypeVar("M", bound=Measured)


def _read(kind: type[M], file: Path, name: str, *, model: Path | None, missing: tuple[str, str]) -> M:
    try:
        return kind.model_validate_json(read_file(file, MAX_FILE_BYTES))
    except FileNotFoundError:
        raise InvalidInput(missing[0], str(file), missing[1]) from None
    except OSError as error:
        raise CheckpointError(model or file, [f"{name} cannot be read: {error.strerror or error}"]) from None
    except ValidationError as error:
        raise CheckpointError(model or file, [f"{name}: {problem}" for problem in problems_in(error)]) from None
