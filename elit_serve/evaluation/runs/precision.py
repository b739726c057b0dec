"""What another precision makes of quality: the same plans and seeds in it and in the one of the model's measurements.

With the same seeds most of the noise is common to both sides, so the ratio of the two is known much better than either.
Its interval is of pairs: each half of the pictures gives a ratio of its own, whose spread tells (`metrics.measures`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.table import Table

from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.metrics import MeasuredSet, from_halves, mean_rows, quality_ratios
from elit_serve.evaluation.runs.comparable import check_prompts, in_precision, quality_compared_with
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.evaluation.runs.provenance import provenance
from elit_serve.files.quality import PlanQuality, PrecisionQuality, Quality, read_quality, write_quality
from elit_serve.files.validation import problems_in
from elit_serve.files.writing import check_folder, write_whole
from elit_serve.plans.estimate import Estimate


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """out: the folder for the result and the features. plans: by their names in `quality.json`; none are its front.

    max_repeats: sets of pictures of a plan, at most as many as it was measured with. writes: into the model as well.
    """

    against: ReferenceOptions
    out: Path
    plans: Sequence[str] = ()
    max_repeats: int = 5
    writes: bool = False


@dataclass(frozen=True, kw_only=True)
class ComparedPlan:
    """One plan on both sides. ratios: of quality, there over here, for all pictures and for halves of them."""

    plan: PlanQuality
    here: Estimate
    there: Estimate
    repeats: int
    ratios: tuple[float, ...]

    @classmethod
    def of(cls, plan: PlanQuality, here: Sequence[MeasuredSet], there: Sequence[MeasuredSet]) -> ComparedPlan:
        """From sets of pictures with the same seeds."""
        return cls(
            plan=plan,
            here=Estimate.mean([each.frechet for each in here]),
            there=Estimate.mean([each.frechet for each in there]),
            repeats=len(here),
            ratios=quality_ratios(there, here),
        )

    @property
    def ratio(self) -> Estimate:
        return from_halves(self.ratios)


def run_precision_command(
    pipeline: Pipeline, extractor: FeatureExtractor, options: PrecisionOptions, console: Console
) -> PrecisionQuality:
    """Compares the precision of `pipeline` with that of the model's `quality.json`.

    Leaves what it found in `out` as `<precision>.json`.
    """
    measured_in, plans = _other_precision(pipeline), chosen_plans(pipeline, options.plans)
    check_prompts(pipeline, extractor, options.against)
    check_folder(options.out)
    measured = in_precision(pipeline, measured_in)
    here = open_evaluator(measured, extractor, options.against, options.out)
    quality = quality_compared_with(measured, here)
    with console.status("measuring"):
        compared = compare(here, here.of(pipeline), plans, max_repeats=options.max_repeats)
    factor = from_halves(mean_rows(each.ratios for each in compared))
    console.print(comparison_table(quality, pipeline.precision, compared, factor))
    try:
        found = PrecisionQuality(
            factor=factor,
            plans={each.plan.name: each.ratio for each in compared},
            provenance=provenance(pipeline, here.batch_size),
        )
    except ValidationError as error:
        raise InvalidInput("dtype", pipeline.precision, "; ".join(problems_in(error))) from None
    text = found.model_dump_json(indent=1) + "\n"
    write_whole(options.out / f"{pipeline.precision}.json", text)
    if options.writes:
        write_precision(pipeline.path, pipeline.precision, found)
    return found


def compare(
    here: Evaluator, there: Evaluator, plans: Sequence[PlanQuality], *, max_repeats: int
) -> tuple[ComparedPlan, ...]:
    """Each plan with the seeds of its first measurements, all of one side and then all of the other."""
    repeats = [min(plan.repeats, max_repeats) for plan in plans]
    sets = [(plan.plan, repeat) for plan, count in zip(plans, repeats, strict=True) for repeat in range(count)]
    found_here, found_there = iter(list(here.distances(sets))), iter(list(there.distances(sets)))
    return tuple(
        ComparedPlan.of(plan, [next(found_here) for _ in range(count)], [next(found_there) for _ in range(count)])
        for plan, count in zip(plans, repeats, strict=True)
    )


def chosen_plans(pipeline: Pipeline, names: Sequence[str]) -> tuple[PlanQuality, ...]:
    """Those of these names, or the front, of a model that was measured."""
    assert pipeline.quality is not None
    quality = pipeline.quality.file
    known = {plan.name: plan for plan in quality.plans}
    for name in names:
        if name not in known:
            front = "; ".join(plan.name for plan in quality.front)
            raise InvalidInput("plan", name, f"a plan of the model's quality.json; on its front are: {front}")
    return tuple(known[name] for name in dict.fromkeys(names)) or quality.front


def write_precision(model: Path, precision: str, found: PrecisionQuality) -> None:
    """Adds it to the `quality.json` of a model directory, in place of what was known of this precision."""
    file = model / "quality.json"
    quality = read_quality(file, model=model)
    changed = quality.model_copy(update={"precisions": {**quality.precisions, precision: found}})
    write_quality(Quality.model_validate_json(changed.model_dump_json()), file)  # the parts must still agree


def comparison_table(quality: Quality, precision: str, compared: Sequence[ComparedPlan], factor: Estimate) -> Table:
    """Plan by plan, cheapest first, and the mean: distances as in the file, now, and there; the ratio of qualities."""
    title = f"{quality.model}: {quality.metric} in {precision} against {quality.measured_in}, by the same seeds"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("plan", no_wrap=True)
    for column in ("in the file", str(quality.measured_in), precision, "quality ratio", "repeats"):
        table.add_column(column, justify="right", no_wrap=True)
    for each in compared:
        distances = (estimate.text(1) for estimate in (each.plan.distance, each.here, each.there))
        table.add_row(each.plan.name, *distances, each.ratio.text(4), str(each.repeats))
    table.add_section()
    table.add_row(f"mean of {len(compared)}", "", "", "", factor.text(4), "")
    return table


def _other_precision(pipeline: Pipeline) -> str:
    """What the model was measured in, which is not what `pipeline` runs in."""
    measured_in = None if pipeline.quality is None else pipeline.quality.file.measured_in
    if measured_in is None:
        allowed = "a model with a quality.json of its own weights, whose provenance has a dtype"
        raise InvalidInput("model", pipeline.config.name, allowed)
    if pipeline.precision == measured_in:
        raise InvalidInput("dtype", measured_in, "another one than the model's quality.json; or give --quantize")
    return measured_in
