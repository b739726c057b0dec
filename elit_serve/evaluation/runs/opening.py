"""From the photographs that a command names to an evaluator of a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import served_steps
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.reference import Reference, make_reference
from elit_serve.photographs import Part, Photograph, open_data_set

logger = logging.getLogger(__name__)

OnCount = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class PhotographOptions:
    """What pictures are measured against.

    reference: photographs, or a .safetensors file of `save_reference`. batch_size: None is the engine's largest.
    """

    reference: Path
    held_out: Path | None
    save_reference: Path | None
    batch_size: int | None


def open_evaluator(
    pipeline: Pipeline,
    extractor: FeatureExtractor,
    photographs: PhotographOptions,
    out: Path,
    *,
    on_photographs: OnCount | None = None,
    on_pictures: OnCount | None = None,
) -> Evaluator:
    """An evaluator that keeps its features in `out`; the two callbacks are told how many of each were just done."""
    largest = max(served_steps(pipeline.config, pipeline.shape_names, pipeline.device).batches)
    return Evaluator(
        pipeline,
        open_reference(pipeline, extractor, photographs, on_photographs),
        extractor,
        batch_size=photographs.batch_size or largest,
        cache=out / "features",
        on_pictures=on_pictures,
    )


def open_reference(
    pipeline: Pipeline, extractor: FeatureExtractor, options: PhotographOptions, on_batch: OnCount | None = None
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
