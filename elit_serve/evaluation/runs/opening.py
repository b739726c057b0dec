"""From the photographs or prompts that a command names to an evaluator of a model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.step_set import served_steps
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.own_pictures import full_plan_of, own_reference, prompted_subjects
from elit_serve.evaluation.runs.reference import Reference, make_reference
from elit_serve.evaluation.runs.sets import PictureSets, Subjects
from elit_serve.photographs import Part, Photograph, open_captioned_set, open_data_set, read_prompts

logger = logging.getLogger(__name__)

OnCount = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions:
    """What pictures are measured against: photographs, or the full plan's pictures of some prompts.

    reference: photographs, or a .safetensors file of `save_reference`; None where prompts are given.
    prompts: as `read_prompts` takes them. samples: pictures of these in a set; None is one of each.
    batch_size: None is the engine's largest.
    """

    reference: Path | None = None
    held_out: Path | None = None
    save_reference: Path | None = None
    prompts: Path | None = None
    samples: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.reference is None and self.prompts is None:
            allowed = "give photographs, or --prompts to compare plans with the model's own full plan"
            raise InvalidInput("reference", None, allowed)
        if self.reference is not None and self.prompts is not None:
            raise InvalidInput("prompts", str(self.prompts), "left out: pictures are of what the photographs are of")
        if self.reference is not None and self.samples is not None:
            raise InvalidInput("samples", self.samples, "left out: as many pictures are made as are held out")
        for field in ("held_out", "save_reference"):
            if self.prompts is not None and getattr(self, field) is not None:
                raise InvalidInput(field, str(getattr(self, field)), "left out: beside --prompts are no photographs")

    @cached_property
    def subjects(self) -> Subjects | None:
        """What the pictures of a set are of, where prompts are given, which are read once."""
        return None if self.prompts is None else prompted_subjects(read_prompts(self.prompts), self.samples)

    def with_prompts_read(self) -> ReferenceOptions:
        """Itself, for commands that load weights next: what is wrong with prompts is better known before."""
        _ = self.subjects
        return self


def open_evaluator(
    pipeline: Pipeline,
    extractor: FeatureExtractor,
    options: ReferenceOptions,
    out: Path,
    *,
    on_photographs: OnCount | None = None,
    on_pictures: OnCount | None = None,
) -> Evaluator:
    """An evaluator that keeps its features in `out`; the two callbacks are told how many of each were just done."""
    batch_size = options.batch_size or max(served_steps(pipeline.config, pipeline.shape_names, pipeline.device).batches)
    cache = out / "features"
    subjects = options.subjects
    if subjects is None:
        reference = open_reference(pipeline, extractor, options, on_photographs)
    else:
        sets = PictureSets(
            pipeline, subjects, extractor, batch_size=batch_size, cache=cache, on_pictures=on_photographs
        )
        reference = own_reference(pipeline, extractor, subjects, sets, full_plan_of(pipeline))
    return Evaluator(pipeline, reference, extractor, batch_size=batch_size, cache=cache, on_pictures=on_pictures)


def open_reference(
    pipeline: Pipeline, extractor: FeatureExtractor, options: ReferenceOptions, on_batch: OnCount | None = None
) -> Reference:
    """The reference of a file, or one made of photographs, and saved if that is asked for."""
    assert options.reference is not None
    if options.reference.suffix == ".safetensors":
        for field in ("held_out", "save_reference"):
            if getattr(options, field) is not None:
                raise InvalidInput(field, str(getattr(options, field)), "a reference file has it all; leave it out")
        return Reference.load(options.reference)
    held_out = None if options.held_out is None else _photographs(pipeline, options.held_out, "held out")
    photographs = _photographs(pipeline, options.reference, "training")
    reference = make_reference(pipeline, extractor, photographs, held_out, on_batch=on_batch)
    if options.save_reference is not None:
        reference.save(options.save_reference)
    return reference


def _photographs(pipeline: Pipeline, source: Path, part: Part) -> Sequence[Photograph]:
    """Those of a folder or tar, with captions where the model has no classes; what is left out of them is said."""
    found = (open_data_set if pipeline.config.classes else open_captioned_set)(source, part)
    if found.note:
        logger.warning(found.note)
    return found.photographs
