"""Where there are no photographs, a model is measured against itself: its full plan's pictures stand for them.

Plans are compared by what they lose. Pictures of the full plan are the reference, and as many by other seeds are what
unseen photographs are elsewhere, so the quality of the full plan is about 1. How good it is itself is not found out.
"""

from __future__ import annotations

from itertools import cycle, islice

from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.runs.reference import MIN_PHOTOGRAPHS, Reference, compact, picture_size
from elit_serve.evaluation.runs.sets import PictureSets, Subjects
from elit_serve.plans.plan import Plan

REFERENCE_REPEAT, FLOOR_REPEAT = 1_000_000, 1_000_001  # whose seeds no measured set has


def prompted_subjects(prompts: tuple[str, ...], num_samples: int | None) -> Subjects:
    """As many pictures, of the prompts in turn; None is one of each."""
    count = len(prompts) if num_samples is None else num_samples
    if count < MIN_PHOTOGRAPHS:
        raise InvalidInput("samples", count, f"at least {MIN_PHOTOGRAPHS} pictures in a set")
    return Subjects(prompts=tuple(islice(cycle(prompts), count)))


def full_plan_of(pipeline: Pipeline) -> Plan:
    """The plan that the model's `quality.json` was measured against, on the time grid of the size that is measured now;
    or else the model's own sampling at full budget."""
    known = known_full_plan(pipeline)
    return pipeline.plan() if known is None else known


def known_full_plan(pipeline: Pipeline) -> Plan | None:
    """The one of the model's `quality.json`; None where there is none, or where its time grid is no longer the model's,
    as when the folder was imported again with another shift."""
    known = pipeline.quality
    if known is None or known.file.full_plan is None:
        return None
    plan = known.file.plan(known.file.full_plan).plan
    if plan.time_shift not in pipeline.config.shifts.values():
        return None
    return known.at_shape(plan, pipeline.sizes.default.name)


def own_reference(
    pipeline: Pipeline, extractor: FeatureExtractor, subjects: Subjects, sets: PictureSets, plan: Plan
) -> Reference:
    """Two sets of pictures of `plan`: one to measure against, and one that tells how far another of its sets is."""
    height, width = picture_size(pipeline)
    reference = sets.sampled(plan, REFERENCE_REPEAT).described
    others = sets.sampled(plan, FLOOR_REPEAT).described
    return Reference(
        metric=extractor.metric,
        fingerprint=extractor.fingerprint,
        height=height,
        width=width,
        classes=tuple(pipeline.config.classes),
        features=compact(reference.features),
        held_out=compact(others.features),
        held_out_classes=(),
        held_out_logits=None if others.logits is None else compact(others.logits),
        held_out_source="pictures of the full plan by other seeds",
        prompts=subjects.prompts,
        full_plan=plan,
    )
