"""A whole evaluation written to a folder, with a progress bar: `evaluation.json`, `table.md`, two pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from elit_serve.budget import check_level
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.model_card import ModelCard, evaluate_model, evenly, prepare
from elit_serve.evaluation.sheets import budget_sheet, nearest_sheet
from elit_serve.pictures import Photograph
from elit_serve.sampling import Plan

SHOWN_CLASSES = 10


def evaluate_to_folder(
    pipeline: Pipeline,
    plan: Plan,
    *,
    training: Sequence[Photograph],
    held_out: Sequence[Photograph],
    extractor: FeatureExtractor,
    out: Path,
    levels: Sequence[int],
    repeats: int,
    batch_size: int,
    num_reference: int | None = None,
    shown_classes: Sequence[int] = (),
    console: Console,
) -> ModelCard:
    """Evaluates `plan` at each of `levels` and writes everything into `out`, which is made if need be."""
    for level in levels:
        check_level(level, pipeline.config.levels)
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # better to know before an hour of sampling than after
    except OSError as error:
        raise InvalidInput("out", str(out), f"a folder that can be written: {error.strerror}") from None
    num_classes = len(pipeline.config.classes)
    class_ids = shown_classes or evenly(num_classes, min(SHOWN_CLASSES, num_classes))
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with bar:
        task = bar.add_task("photographs", total=len(training) + len(held_out))
        benchmark = prepare(
            pipeline,
            training,
            held_out,
            extractor,
            num_reference=num_reference,
            batch_size=batch_size,
            on_pictures=lambda count: bar.advance(task, count),
        )
        sampling = bar.add_task("samples", total=len(set(levels)) * repeats * benchmark.num_samples)
        card = evaluate_model(
            pipeline,
            benchmark,
            plan,
            levels=levels,
            repeats=repeats,
            batch_size=batch_size,
            on_pictures=lambda count: bar.advance(sampling, count),
        )
    full = plan.at_level(max(levels))
    (out / "evaluation.json").write_text(card.as_json() + "\n")
    (out / "table.md").write_text(card.as_markdown())
    budget_sheet(pipeline, plan, levels=levels, class_ids=class_ids).save(out / "budgets.png")
    nearest_sheet(pipeline, full, benchmark, batch_size=batch_size).save(out / "nearest.png")
    return card
