"""What `elit-serve evaluate` does, from paths and names to files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elit_serve.engine.conditions import Condition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import served_steps
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.metrics import INTERVALS, PlanMeasures, nearest
from elit_serve.evaluation.report.sheets import budget_sheet, evenly, nearest_sheet
from elit_serve.evaluation.report.table import as_markdown
from elit_serve.evaluation.runs.evaluator import SEEDS_PER_REPEAT, Evaluator
from elit_serve.evaluation.runs.provenance import provenance
from elit_serve.evaluation.runs.reference import Reference, make_reference
from elit_serve.evaluation.runs.throughput import SaturatedEngine
from elit_serve.files.evaluation import EvaluatedPlan, Evaluation, PictureSize
from elit_serve.files.writing import check_folder
from elit_serve.photographs import Part, Photograph, open_data_set
from elit_serve.plans.levels import check_level
from elit_serve.plans.plan import Plan

logger = logging.getLogger(__name__)

SHOWN_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """reference: photographs, or a .safetensors file of `save_reference`. batch_size: None is the engine's largest."""

    reference: Path
    held_out: Path | None
    save_reference: Path | None
    out: Path
    levels: Sequence[int]
    repeats: int
    batch_size: int | None
    shown_conditions: Sequence[Condition] = ()


def run_evaluation(
    pipeline: Pipeline, plan: Plan, extractor: FeatureExtractor, options: EvaluateOptions, console: Console
) -> str:
    """Evaluates `plan` at each level, the highest first, writes the folder, and returns the table."""
    levels = [check_level(level, pipeline.config.levels) for level in sorted(set(options.levels), reverse=True)]
    plans = [plan.at_level(level) for level in levels]
    check_folder(options.out)
    batch_size = options.batch_size or max(served_steps(pipeline.config, pipeline.shape_names, pipeline.device).batches)
    with progress_bar(console) as bar:
        reading = bar.add_task("photographs", total=None)
        reference = open_reference(pipeline, extractor, options, lambda count: bar.advance(reading, count))
        bar.remove_task(reading)
        sampling = bar.add_task("samples", total=len(plans) * options.repeats * reference.num_samples)
        evaluator = Evaluator(
            pipeline,
            reference,
            extractor,
            batch_size=batch_size,
            cache=options.out / "features",
            on_pictures=lambda count: bar.advance(sampling, count),
        )
        measured = [evaluator.measure(each, repeats=options.repeats) for each in plans]
    evaluation = evaluation_of(pipeline, evaluator, measured)
    evaluation.write(options.out)
    table = as_markdown(evaluation)
    (options.out / "table.md").write_text(table, encoding="utf-8")
    write_sheets(pipeline, evaluator, plans, options.out, shown=options.shown_conditions)
    return table


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def evaluation_of(pipeline: Pipeline, evaluator: Evaluator, measured: Sequence[PlanMeasures]) -> Evaluation:
    """The figures and all that they depend on."""
    reference = evaluator.reference
    engine = SaturatedEngine.of(pipeline, num_samples=reference.num_samples, batch_size=evaluator.batch_size)
    return Evaluation(
        model=pipeline.config.name,
        model_hash=pipeline.model_hash,
        metric=evaluator.metric,
        features_sha256=reference.fingerprint,
        num_samples=reference.num_samples,
        num_reference=len(reference.features),
        held_out=reference.held_out_source,
        class_distribution=reference.class_distribution,
        sampler="Euler",
        seeds=f"sample i of repeat r has seed {SEEDS_PER_REPEAT} r + i",
        autoencoder=pipeline.config.autoencoder.kind,
        picture=PictureSize(height=reference.height, width=reference.width),
        intervals=INTERVALS,
        floor=evaluator.floors,
        plans=tuple(_evaluated(pipeline, evaluator, engine, each) for each in measured),
        provenance=provenance(pipeline, evaluator.batch_size),
    )


def _evaluated(
    pipeline: Pipeline, evaluator: Evaluator, engine: SaturatedEngine, measures: PlanMeasures
) -> EvaluatedPlan:
    scores, level = measures.scores, measures.plan.mean_level
    throughput = engine.compared(measures.plan, measures.images_per_second)
    return EvaluatedPlan(
        level=level,
        budget=pipeline.config.budgets.of_level(level),
        frechet_over_floor=scores.frechet.value / evaluator.floor.value,
        plan=measures.plan,
        num_samples=measures.num_samples,
        repeats=measures.repeats,
        frechet=scores.frechet,
        kernel=scores.kernel,
        precision=scores.precision,
        recall=scores.recall,
        inception_score=scores.inception_score,
        nearest_ratio=scores.nearest_ratio.value,
        nearest_half_width=scores.nearest_ratio.half_width,
        images_per_second=measures.images_per_second,
        frechets=measures.frechets,
        saturated_images_per_second=throughput.saturated_images_per_second,
        share_of_saturated=throughput.share_of_saturated,
    )


def write_sheets(
    pipeline: Pipeline, evaluator: Evaluator, plans: Sequence[Plan], out: Path, *, shown: Sequence[Condition] = ()
) -> None:
    """`budgets.png` and `nearest.png`, which needs the photographs, so that a reference file does without."""
    known, reference = pipeline.conditions, evaluator.reference
    shown = shown or [known[index] for index in evenly(len(known), SHOWN_CLASSES)]
    levels = [plan.levels[0] for plan in plans]
    budget_sheet(pipeline, plans[0], levels=levels, conditions=shown).save(out / "budgets.png")
    if reference.photographs:
        sheet = nearest_sheet(
            pipeline,
            plans[0],
            conditions=[known[index] for index in reference.held_out_classes],
            seeds=evaluator.seeds(0),
            found=nearest(evaluator.features(plans[0], 0), reference.features),
            photographs=reference.photographs,
        )
        sheet.save(out / "nearest.png")


def open_reference(
    pipeline: Pipeline,
    extractor: FeatureExtractor,
    options: EvaluateOptions,
    on_batch: Callable[[int], None] | None = None,
) -> Reference:
    """The reference of a file, or one made of photographs, and saved if that is asked for."""
    if options.reference.suffix == ".safetensors":
        for field in ("held_out", "save_reference"):
            if getattr(options, field) is not None:
                raise InvalidInput(field, str(getattr(options, field)), "a reference file has it all; leave it out")
        return Reference.load(options.reference)
    held_out = None if options.held_out is None else _photographs(options.held_out, "held out")
    photographs = _photographs(options.reference, "training")
    reference = make_reference(pipeline, extractor, photographs, held_out, on_batch=on_batch)
    if options.save_reference is not None:
        reference.save(options.save_reference)
    return reference


def _photographs(source: Path, part: Part) -> Sequence[Photograph]:
    """Those of a folder or tar; what is left out of them is said."""
    found = open_data_set(source, part)
    if found.note:
        logger.warning(found.note)
    return found.photographs
