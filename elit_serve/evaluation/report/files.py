"""An evaluation in files: `evaluation.json`, `table.md`, `budgets.png` and `nearest.png`."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import elit_serve
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import device_name
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.metrics.measures import INTERVALS, PlanMeasures
from elit_serve.evaluation.report.sheets import budget_sheet, evenly, nearest_sheet
from elit_serve.evaluation.runs.evaluator import SEEDS_PER_REPEAT, Evaluator
from elit_serve.evaluation.runs.throughput import SaturatedEngine
from elit_serve.plans.estimate import Estimate
from elit_serve.text.command_line import command_line

SHOWN_CLASSES = 10


def check_folder(out: Path) -> None:
    """Makes `out` and writes to it: better to know before an hour of sampling than after."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()
    except OSError as error:
        raise InvalidInput("out", str(out), f"a folder that can be written: {error.strerror}") from None


def progress_bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def write_report(
    pipeline: Pipeline,
    evaluator: Evaluator,
    measured: Sequence[PlanMeasures],
    out: Path,
    *,
    shown_classes: Sequence[int] = (),
) -> str:
    """Writes everything and returns the table. `nearest.png` needs the photographs, which a reference file lacks."""
    facts = evaluation_facts(pipeline, evaluator, measured)
    table = as_markdown(evaluator, measured, pipeline.config.spec.latents_per_group)
    (out / "evaluation.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    (out / "table.md").write_text(table, encoding="utf-8")
    plans = [each.plan for each in measured]
    classes = pipeline.config.classes
    class_ids = shown_classes or evenly(len(classes), min(SHOWN_CLASSES, len(classes)))
    budget_sheet(pipeline, plans[0], levels=[plan.levels[0] for plan in plans], class_ids=class_ids).save(
        out / "budgets.png"
    )
    if evaluator.reference.photographs:
        nearest_sheet(pipeline, plans[0], evaluator).save(out / "nearest.png")
    return table


def evaluation_facts(pipeline: Pipeline, evaluator: Evaluator, measured: Sequence[PlanMeasures]) -> dict[str, Any]:
    """`evaluation.json`: the figures and all that they depend on."""
    reference = evaluator.reference
    engine = SaturatedEngine.of(pipeline, num_samples=reference.num_samples, batch_size=evaluator.batch_size)
    return {
        "format_version": 2,
        "model": pipeline.config.name,
        "model_hash": pipeline.model_hash,
        "metric": evaluator.metric,
        "features_sha256": reference.fingerprint,
        "num_samples": reference.num_samples,
        "num_reference": len(reference.features),
        "held_out": reference.held_out_source,
        "class_distribution": reference.class_distribution,
        "sampler": "Euler",
        "seeds": f"sample i of repeat r has seed {SEEDS_PER_REPEAT} r + i",
        "autoencoder": pipeline.config.autoencoder.kind,
        "picture": {"height": reference.height, "width": reference.width},
        "intervals": INTERVALS,
        "floor": asdict(evaluator.floors),
        "plans": [_plan_facts(pipeline, evaluator, engine, each) for each in measured],
        "provenance": provenance(pipeline, evaluator.batch_size),
    }


def _plan_facts(
    pipeline: Pipeline, evaluator: Evaluator, engine: SaturatedEngine, measures: PlanMeasures
) -> dict[str, Any]:
    return {
        "level": measures.plan.mean_level,
        "budget": measures.plan.mean_level / pipeline.config.spec.latents_per_group,
        "frechet_over_floor": measures.frechet.value / evaluator.floor.value,
        **asdict(measures),
        **engine.compared(measures.plan, measures.images_per_second),
    }


def as_markdown(evaluator: Evaluator, measured: Sequence[PlanMeasures], latents_per_group: int) -> str:
    """A table with a row per plan, and what it means below."""
    has_logits = evaluator.floors.inception_score is not None
    header = ["budget", "level", evaluator.metric, "over the floor", "kernel distance", "precision", "recall"]
    header += ["Inception Score"] if has_logits else []
    header += ["nearest-training ratio"]
    lines = [_row(header), _row(["---"] * len(header))]
    for each in measured:
        nearest = Estimate(value=each.nearest_ratio, half_width=each.nearest_half_width)
        level = each.plan.mean_level
        lines.append(_row([f"{level / latents_per_group:.4g}", f"{level:g}", *_cells(evaluator, each, nearest)]))
    floors = evaluator.floors
    lines.append(_row(["held-out photographs", "", *_cells(evaluator, floors, floors.nearest_ratio)]))
    reference = evaluator.reference
    lines += [
        "",
        f"{evaluator.metric} (Fréchet distance), kernel distance, precision and recall of {reference.num_samples} "
        f"samples in the class mix of the held-out photographs ({reference.held_out_source}) against "
        f"{len(reference.features)} reference photographs, mean of {measured[0].repeats} sets of seeds. Held-out "
        f"photographs, as many, score the floor. Intervals: {INTERVALS}. Nearest-training ratio: median distance in "
        "feature space to the nearest reference photograph, over that of held-out photographs; copies would score 0.",
    ]
    return "\n".join(lines) + "\n"


def _cells(evaluator: Evaluator, scores: Any, nearest: Estimate) -> list[str]:
    cells = [
        scores.frechet.text(1),
        f"{scores.frechet.value / evaluator.floor.value:.2f}",
        scores.kernel.text(4),
        scores.precision.text(3),
        scores.recall.text(3),
    ]
    if scores.inception_score is not None:
        cells.append(scores.inception_score.text(2))
    return [*cells, nearest.text(2)]


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def provenance(pipeline: Pipeline, batch_size: int) -> dict[str, Any]:
    """What a measured figure depends on beside the plan."""
    return {
        "command": command_line(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(pipeline.device),
        "dtype": pipeline.precision,
        "batch_size": batch_size,
        "elit_serve": elit_serve.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
