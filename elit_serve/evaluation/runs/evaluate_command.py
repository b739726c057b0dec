"""What `elit-serve evaluate` does, from paths and names to files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import served_steps
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features.extractors import FeatureExtractor
from elit_serve.evaluation.report.files import check_folder, progress_bar, write_report
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.reference import Reference, make_reference
from elit_serve.photographs import Part, Photograph, open_data_set
from elit_serve.plans.levels import check_level
from elit_serve.plans.plan import Plan

logger = logging.getLogger(__name__)


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
    shown_classes: Sequence[int] = ()


def run_evaluation(
    pipeline: Pipeline, plan: Plan, extractor: FeatureExtractor, options: EvaluateOptions, console: Console
) -> str:
    """Evaluates `plan` at each level, the highest first, writes the folder, and returns the table."""
    levels = [check_level(level, pipeline.config.levels) for level in sorted(set(options.levels), reverse=True)]
    plans = [plan.at_level(level) for level in levels]
    check_folder(options.out)
    batch_size = options.batch_size or max(served_steps(pipeline.config, pipeline.device).batches)
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
    return write_report(pipeline, evaluator, measured, options.out, shown_classes=options.shown_classes)


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
