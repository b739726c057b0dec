"""What `elit-serve evaluate` does, from paths and names to files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elit_serve.engine.conditions import Condition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.metrics import INTERVALS, PlanMeasures, nearest
from elit_serve.evaluation.report.sheets import budget_sheet, evenly, nearest_sheet
from elit_serve.evaluation.report.table import as_markdown
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.evaluation.runs.provenance import provenance
from elit_serve.evaluation.runs.sets import SEEDS_PER_REPEAT
from elit_serve.evaluation.runs.throughput import SaturatedEngine
from elit_serve.files.evaluation import EvaluatedPlan, Evaluation, PictureSize
from elit_serve.files.writing import check_folder, write_whole
from elit_serve.pictures import write_sheet
from elit_serve.plans.levels import check_level
from elit_serve.plans.plan import Plan

SHOWN_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """out: the folder for what is found. repeats: sets of pictures at each level, each with seeds of its own."""

    against: ReferenceOptions
    out: Path
    levels: Sequence[int]
    repeats: int
    shown_conditions: Sequence[Condition] = ()


def run_evaluation(
    pipeline: Pipeline, plan: Plan, extractor: FeatureExtractor, options: EvaluateOptions, console: Console
) -> str:
    """Evaluates `plan` at each level, the highest first, writes the folder, and returns the table."""
    levels = [check_level(level, pipeline.config.levels) for level in sorted(set(options.levels), reverse=True)]
    plans = [plan.at_level(level) for level in levels]
    check_folder(options.out)
    with progress_bar(console) as bar:
        reading = bar.add_task("photographs", total=None)
        sampling = bar.add_task("samples", total=None, visible=False)
        evaluator = open_evaluator(
            pipeline,
            extractor,
            options.against,
            options.out,
            on_photographs=lambda count: bar.advance(reading, count),
            on_pictures=lambda count: bar.advance(sampling, count),
        )
        bar.remove_task(reading)
        sets = options.repeats + evaluator.tells_words
        bar.update(sampling, total=len(plans) * sets * evaluator.reference.num_samples, visible=True)
        measured = [evaluator.measure(each, repeats=options.repeats) for each in plans]
        evaluation = evaluation_of(pipeline, evaluator, measured)
    evaluation.write(options.out)
    table = as_markdown(evaluation)
    write_whole(options.out / "table.md", table)
    write_sheets(pipeline, evaluator, plans, options.out, shown=options.shown_conditions)
    return table


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not console.is_terminal)


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
        floor_class=evaluator.floor_class,
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
        following=evaluator.following(measures.plan),
    )


def write_sheets(
    pipeline: Pipeline, evaluator: Evaluator, plans: Sequence[Plan], out: Path, *, shown: Sequence[Condition] = ()
) -> None:
    """`budgets.png` and `nearest.png`, which needs the photographs, so that a reference file does without."""
    known, reference = pipeline.conditions, evaluator.reference
    shown = shown or [known[index] for index in evenly(len(known), SHOWN_CLASSES)]
    write_sheet(out / "budgets.png", budget_sheet(pipeline, plans, conditions=shown))
    if reference.photographs:
        sheet = nearest_sheet(
            pipeline,
            plans[0],
            conditions=evaluator.conditions,
            seeds=evaluator.seeds(0),
            found=nearest(evaluator.features(plans[0], 0), reference.features),
            photographs=reference.photographs,
        )
        write_sheet(out / "nearest.png", sheet)
