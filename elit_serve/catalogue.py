"""What a model offers, read from its directory alone: its configuration, what its plans are worth, what steps cost.

Knows no torch and reads no weight, so whoever simulates, plans or draws a page starts at once. A file by itself is
`files`; what the scheduler needs of one is made here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path

from pydantic import ValidationError

from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files.config import BackboneCheck, ModelConfig, SamplingConfig
from elit_serve.files.latency import Latency
from elit_serve.files.opening import read_file
from elit_serve.files.quality import PlanQuality, Quality, read_quality
from elit_serve.files.skips import SkipCalibration, read_skips
from elit_serve.files.validation import MAX_PROBLEMS, problems_in
from elit_serve.plans.coarsening import Coarsening, losses_between
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.grid import Shift
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import Skips
from elit_serve.scheduler.costs import AnswerCost, CostTable
from elit_serve.scheduler.quality import MeasuredPlan, QualityTable

logger = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 8 << 20
BUNDLED_MODEL = "garden64"


def bundled_models() -> Path:
    """The folder of the models that travel with the package: inside a wheel, or beside a source checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "bundled"
    return inside if inside.is_dir() else package.parent / "models"


def resolve_model(model: str | os.PathLike[str] | None) -> Path:
    """A model directory by path, or a bundled model by its name; None is the bundled default."""
    if model is None:
        return bundled_models() / BUNDLED_MODEL  # whatever lies in the current directory under this name
    name = os.fspath(model)
    if os.path.isdir(name):  # noqa: PTH112 (which raises nothing, however long the name is)
        return Path(name)
    bundled = bundled_models() / name
    if Path(name).name == name and os.path.isfile(bundled / "config.json"):  # noqa: PTH113 (as above)
        return bundled
    known = sorted(folder.parent.name for folder in bundled_models().glob("*/config.json"))
    raise InvalidInput("model", name, f"a model directory, or a bundled model ({', '.join(known) or 'none here'})")


def cost_table(latency: Latency, only_shape: str = "only") -> CostTable:
    """What a policy knows of a device. only_shape: of the steps of a file that names none."""
    return CostTable(
        steps_ms={(step.kind(only_shape), step.batch): step.step_ms for step in latency.steps},
        overhead_ms=0.0 if latency.answers else latency.overhead_ms,
        answers_ms={
            (answer.shape or only_shape, answer.batch): AnswerCost(answer.decode_ms, answer.encode_ms)
            for answer in latency.answers
        },
        pads_batches=latency.graphs,
        text_ms=max((took_ms / number for number, took_ms in latency.text_ms.items()), default=0.0),
    )


def alone_ms(latency: Latency, plan: Plan) -> float:
    """Of one picture by this plan on an idle device, from its first step to its encoded file."""
    costs = cost_table(latency)
    caps = plan.weak_caps(max(plan.levels))
    return costs.alone_ms(costs.shapes[0], plan.levels, caps, skipped=plan.skips.core)


@dataclass(frozen=True)
class ModelQuality:
    """What a model's pictures are worth: its `quality.json` as the scheduler and the answers ask it.

    precision: what the pictures are computed in; None is what the file was measured in. All qualities are multiplied by
    what was measured of it, and told as they are in the file where nothing was.
    can_skip: whether plans that skip something are served.
    shape_shifts: of shapes whose time grids differ, by name: what was measured at one size is taken for all.
    """

    file: Quality
    precision: str | None = None
    can_skip: bool = False
    shape_shifts: Mapping[str, Shift] = field(default_factory=dict)

    @cached_property
    def factor(self) -> Estimate | None:
        """What is known of this precision; None is not measured."""
        return self.file.factor_in(self.precision or self.file.measured_in or "")

    @cached_property
    def table(self) -> QualityTable:
        """What the scheduler reads."""
        levels = {level: self._worth(quality) for level, quality in self.file.levels.items()}
        return QualityTable(
            levels=levels, plans=tuple(self._measured(plan) for plan in self.served), late=self.file.late
        )

    @cached_property
    def served(self) -> tuple[PlanQuality, ...]:
        """What a server offers: the front or, of a long one, plans spread evenly over the logarithm of cost. Without
        plans that skip something it is the front of all others."""
        return self.file.served(can_skip=self.can_skip)

    def at_shape(self, plan: Plan, shape: str) -> Plan:
        """A measured plan for pictures of the shape of this name, with the time grid of that."""
        if plan.time_shift not in self.shape_shifts.values():
            return plan
        return replace(plan, time_shift=self.shape_shifts.get(shape, plan.time_shift))

    def table_of(self, shape: str) -> QualityTable:
        """What the scheduler reads of pictures of this shape."""
        if not self.shape_shifts:
            return self.table
        plans = (self._made_of(plan, shape) for plan in self.served)
        return replace(self.table, plans=tuple(plans))

    def of(self, plan: Plan) -> float | None:
        """The quality of a picture that is made so; None if nothing was measured with its steps and guidance, or longer
        steps than are allowed are among them.

        As `QualityTable.of_plan` has it.
        """
        measured = self._measured_like(plan)
        if measured is None:
            return None
        allowed = 1 if measured.coarsening is None else measured.coarsening.max_stride
        return self.table.of_plan(measured, plan.levels, plan.strides) if max(plan.strides) <= allowed else None

    def coarsening_of(self, plan: Plan) -> Coarsening | None:
        """How long the steps of a plan may become, and what that costs: where longer steps were measured (`grids` of
        the file), up to those of the fewest that were measured with its guidance. None is not at all.
        """
        measured = self._measured_like(plan)
        return None if measured is None else measured.coarsening

    def _measured_like(self, plan: Plan) -> MeasuredPlan | None:
        """Of this guidance and grid; of these very levels, if they were measured."""
        alike = self._alike(plan)
        if not alike:
            return None
        return self._measured(next((known for known in alike if known.step_levels == plan.levels), alike[0]))

    def _measured(self, plan: PlanQuality) -> MeasuredPlan:
        """As the scheduler has it; made once, because every picture asks for it several times."""
        if plan.name not in self._made:
            self._made[plan.name] = self._made_of(plan)
        return self._made[plan.name]

    @cached_property
    def _made(self) -> dict[str, MeasuredPlan]:
        """What `_measured` has made, by name."""
        return {}

    def guidance_at(self, level: int, usual: SamplingConfig) -> Guidance:
        """How pictures that stay at this level are best guided: low levels often bear a larger scale than the full one.

        Of the guidances that were measured at one level throughout and cost what the usual one does there, with its
        steps, method and weak level, the one that is worth most at this level, as measured or between measured levels.
        The usual guidance where nothing is measured.
        """
        measured: dict[Guidance, list[int]] = {}
        time_shift = self._measured_shift(usual.time_shift)
        for plan in self.file.plans:
            guidance, has_usual_steps = plan.guidance, (plan.steps, plan.time_shift) == (usual.steps, time_shift)
            is_alike = (guidance.method, guidance.weak_level) == (usual.guidance.method, usual.guidance.weak_level)
            if has_usual_steps and is_alike and len(plan.levels) == 1 and not plan.skips:
                measured.setdefault(guidance, []).append(plan.step_levels[0])
        usual_plan = usual.plan(level)
        return max(
            (guidance for guidance, known in measured.items() if min(known) <= level <= max(known)),
            key=lambda guidance: self.of(replace(usual_plan, guidance=guidance)) or 0.0,
            default=usual.guidance,
        )

    def _made_of(self, plan: PlanQuality, shape: str | None = None) -> MeasuredPlan:
        """shape: of the pictures; None is the one that was measured."""
        full_level = max([*self.file.levels, *(max(plan.step_levels) for plan in self.file.plans)])
        return MeasuredPlan(
            name=plan.name,
            weak_caps=(plan.plan if shape is None else self.at_shape(plan.plan, shape)).weak_caps(full_level),
            ceilings=plan.step_levels,
            quality=self._worth(plan.quality.value),
            levels=self._curve_of(self._alike(plan.plan)),
            min_level=plan.guidance.min_level,
            skipped=plan.plan.skips.core,
            coarsening=self._coarsening(plan),
        )

    def _coarsening(self, plan: PlanQuality) -> Coarsening | None:
        """One object for each guidance and grid, by which the scheduler remembers what follows from it."""
        return next((found for known, found in self._coarsenings if known.is_sampled_like(plan.plan)), None)

    @cached_property
    def _coarsenings(self) -> list[tuple[PlanQuality, Coarsening]]:
        """Of each guidance and grid the first plan of one level, if its steps may become longer: what steps use again
        of earlier ones goes with their own length."""
        found: list[tuple[PlanQuality, Coarsening]] = []
        if self.file.grids is None:
            return found
        even = [plan for plan in self.file.plans if len(plan.levels) == 1 and not plan.skips]
        for plan in even:
            if not any(known.is_sampled_like(plan.plan) for known, _ in found):
                losses = _losses(plan, [other for other in even if other.is_guided_like(plan)])
                if losses:
                    found.append((plan, Coarsening.of(plan.plan.times, losses, self.file.grids.last)))
        return found

    def _alike(self, plan: Plan) -> list[PlanQuality]:
        """Measured ones on its whole grid."""
        if max(plan.strides) > 1:
            if plan.skips:
                return []
            plan = replace(plan, levels=(max(plan.levels),) * plan.grid_steps, strides=())
        return self._sampled_like(plan.strides, self._measured_shift(plan.time_shift), plan.skips, plan.guidance)

    def _measured_shift(self, shift: Shift) -> Shift:
        """That of the size which was measured, in place of another size's."""
        measured, shifts = self.file.plans[0].time_shift, self.shape_shifts.values()
        return measured if shift in shifts and measured in shifts else shift

    @cached_property
    def _sampled_like(self) -> Callable[[tuple[int, ...], Shift, Skips, Guidance], list[PlanQuality]]:
        """Measured plans of which only the levels may be others, see `PlanQuality.is_sampled_like`. Remembered for as
        many ways of sampling as are asked for: a server has a few, and its callers may name more."""

        @lru_cache(maxsize=256)
        def found(strides: tuple[int, ...], time_shift: Shift, skips: Skips, guidance: Guidance) -> list[PlanQuality]:
            lowest = (guidance.min_level,) * len(strides)
            wanted = Plan(levels=lowest, guidance=guidance, time_shift=time_shift, skips=skips, strides=strides)
            return [plan for plan in self.file.plans if plan.is_sampled_like(wanted)]

        return found

    def _curve_of(self, alike: Sequence[PlanQuality]) -> dict[float, float]:
        """Level -> quality of these plans, those of one level if there are such; mean level -> the best otherwise."""
        of_one_level = [plan for plan in alike if len(set(plan.step_levels)) == 1]
        by_quality = sorted(of_one_level or alike, key=lambda plan: plan.quality.value)
        return {plan.mean_level: self._worth(plan.quality.value) for plan in by_quality}

    def _worth(self, measured: float) -> float:
        """What a measured quality is in this precision."""
        return measured if self.factor is None else min(1.0, measured * self.factor.value)


def _losses(plan: PlanQuality, even: Sequence[PlanQuality]) -> dict[int, tuple[float, ...]]:
    """Level -> the share of quality lost by each stride on the grid of `plan`, down to the fewest steps of `even`,
    plans of one level and its guidance; of the levels at which both were measured. Empty if there are none.
    """
    fewest = min(other.steps for other in even)
    longest = plan.steps // fewest
    quality = {(other.steps, other.step_levels[0]): other.quality.value for other in even}
    losses = {}
    for steps, level in quality:
        if steps != plan.steps or longest < 2:
            continue
        known = {
            plan.steps / fewer: 1 - worth / quality[steps, level]
            for (fewer, at), worth in quality.items()
            if at == level and fewer < steps
        }
        if max(known, default=0) >= longest:
            losses[level] = losses_between(known, longest)
    return losses


@dataclass(frozen=True, kw_only=True)
class Offer:
    """A model without its weights. quality, calibration: None where nothing was measured with these weights."""

    path: Path
    config: ModelConfig
    quality: ModelQuality | None = None
    calibration: SkipCalibration | None = None


def read_offer(path: Path) -> Offer:
    """What a model directory offers. Raises one `CheckpointError` that lists all that is wrong with these files."""
    config = read_config(path)
    quality, problems = measured_quality(path, config)
    calibration, others = measured_skips(path, config)
    if problems or others:
        raise CheckpointError(path, [*problems, *others])
    return Offer(path=path, config=config, quality=quality, calibration=calibration)


def read_config(path: Path, check_backbone: BackboneCheck | None = None) -> ModelConfig:
    """`config.json` of a model directory. check_backbone: for whoever will build it, see `files.BackboneConfig`."""
    file = path / "config.json"
    try:
        return ModelConfig.read(read_file(file, MAX_CONFIG_BYTES), check_backbone)
    except OSError as error:
        is_pipeline = os.path.isfile(path / "model_index.json") and not os.path.lexists(file)  # noqa: PTH113
        hint = "; this is a folder of diffusers, which elit-serve import makes a model" if is_pipeline else ""
        raise CheckpointError(path, [f"config.json cannot be read: {error.strerror}{hint}"]) from None
    except ValidationError as error:
        raise CheckpointError(path, [f"config.json: {problem}" for problem in problems_in(error)]) from None
    except InvalidInput as error:
        raise CheckpointError(path, [f"config.json: {error}"]) from None


def measured_quality(path: Path, config: ModelConfig) -> tuple[ModelQuality | None, list[str]]:
    """`quality.json` of a model directory where there is one, and what is wrong with it.

    One that was measured with other weights, as an export over an older model leaves it, is passed over.
    """
    file = path / "quality.json"
    if not os.path.lexists(file):  # a link to nowhere is not left unsaid
        return None, []
    try:
        quality = read_quality(file, model=path)
    except CheckpointError as error:
        return None, list(error.problems)
    if not _is_of(config, file, quality.model_hash):
        return None, []
    shifts = config.shifts if config.sampling.shape_shifts else {}
    return ModelQuality(quality, shape_shifts=shifts), at_most(_level_problems(quality, config.levels), MAX_PROBLEMS)


def measured_skips(path: Path, config: ModelConfig) -> tuple[SkipCalibration | None, list[str]]:
    """`skips.json` of a model directory where there is one, and what is wrong with it, as `measured_quality`."""
    file = path / "skips.json"
    if not os.path.lexists(file):
        return None, []
    try:
        calibration = read_skips(file, model=path)
    except CheckpointError as error:
        return None, list(error.problems)
    return (calibration if _is_of(config, file, calibration.model_hash) else None), []


def _is_of(config: ModelConfig, file: Path, model_hash: str) -> bool:
    """Whether a file was measured with these weights; says so if it was not."""
    if model_hash != config.model_hash:
        logger.warning(
            "%s was measured with the weights %s and these are %s: it is not used", file, model_hash, config.model_hash
        )
    return model_hash == config.model_hash


def _level_problems(quality: Quality, trained: tuple[int, ...]) -> list[str]:
    problems = [
        f"quality.json: levels: {level} is no trained level" for level in quality.levels if level not in trained
    ]
    for plan in quality.plans:
        used = {level for level, _ in plan.levels}
        if plan.guidance.has_weak_level:
            used.add(plan.guidance.weak_level)
        problems += [
            f"quality.json: plan {plan.name}: {level} is no trained level" for level in sorted(used.difference(trained))
        ]
    return problems


def at_most(problems: list[str], limit: int) -> list[str]:
    """The first of them, and how many more there are."""
    return problems if len(problems) <= limit else [*problems[:limit], f"and {len(problems) - limit} more"]
