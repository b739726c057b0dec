"""Whether what is measured now lies on the scale of a model's own `quality.json`."""

from __future__ import annotations

from pathlib import Path

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.precision import options_of
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.opening import ReferenceOptions, open_evaluator
from elit_serve.evaluation.runs.own_pictures import known_full_plan
from elit_serve.evaluation.runs.sets import Subjects
from elit_serve.files.quality import Quality

SAME_FLOOR = 0.01  # of the floor; rounding features to float16 moves a distance by less than 0.0001 of it


def open_on_scale(pipeline: Pipeline, extractor: FeatureExtractor, options: ReferenceOptions, out: Path) -> Evaluator:
    """An evaluator of `pipeline` whose reference is that of the model's `quality.json`.

    Pictures of the full plan stand for photographs in the precision that was measured alone: those of another one would
    be another scale, on which what this precision costs could not be seen.
    """
    check_prompts(pipeline, extractor, options)
    measured_in = None if pipeline.quality is None else pipeline.quality.file.measured_in
    if options.prompts is None or measured_in in (None, pipeline.precision):
        return open_evaluator(pipeline, extractor, options, out)
    return open_evaluator(in_precision(pipeline, measured_in), extractor, options, out).of(pipeline)


def in_precision(pipeline: Pipeline, precision: str) -> Pipeline:
    """The same model on the same device, loaded once more."""
    dtype, quantize = options_of(precision)
    return Pipeline.load(pipeline.path, device=str(pipeline.device), dtype=dtype, quantize=quantize)


def check_prompts(pipeline: Pipeline, extractor: FeatureExtractor, options: ReferenceOptions) -> None:
    """Before two sets of the full plan's pictures are made: whether prompts are those of the model's `quality.json`."""
    if options.subjects is not None:
        _quality_of(pipeline, options.subjects, extractor.fingerprint, extractor.metric, is_own=True)


def quality_compared_with(pipeline: Pipeline, evaluator: Evaluator) -> Quality:
    """The model's own measurements. Raises `InvalidInput` where another scale, other features, another size or number
    of pictures or other photographs or prompts were behind them.
    """
    reference = evaluator.reference
    is_own = reference.full_plan is not None
    quality = _quality_of(pipeline, reference.subjects, reference.fingerprint, reference.metric, is_own=is_own)
    if not is_own or quality.prompts_sha256 is None:
        _check_floor("prompts" if is_own else "reference", evaluator.floor.value, quality)
    return quality


def _quality_of(pipeline: Pipeline, subjects: Subjects, fingerprint: str, metric: str, *, is_own: bool) -> Quality:
    """The model's own measurements, if these features of pictures of these subjects were behind them. is_own: pictures
    of the full plan are the reference, and no photographs."""
    if pipeline.quality is None:
        raise InvalidInput("model", pipeline.config.name, "a model with a quality.json of its own weights")
    quality = pipeline.quality.file
    number, source = ("samples", "prompts") if is_own else ("held_out", "reference")
    if is_own != (quality.full_plan is not None):
        kinds = ("photographs", "pictures of the full plan")
        allowed = f"{kinds[not is_own]}, as in the model's quality.json ({quality.reference})"
        raise InvalidInput(source, kinds[is_own], allowed)
    if is_own and known_full_plan(pipeline) is None:
        allowed = "one whose time grid is that of its quality.json; sweep measures it anew"
        raise InvalidInput("model", pipeline.config.name, allowed)
    if pipeline.sizes.names[0] != pipeline.quality_size:
        allowed = f"{pipeline.quality_size}, as in the model's quality.json, as its default size"
        raise InvalidInput("model", pipeline.sizes.names[0], allowed)
    if fingerprint != quality.features_sha256:
        raise InvalidInput("features", metric, f"those of the model's quality.json, {quality.metric}")
    if len(subjects) != quality.num_samples:
        raise InvalidInput(number, len(subjects), f"{quality.num_samples}, as in the model's quality.json")
    if quality.prompts_sha256 not in (None, subjects.prompts_sha256):
        allowed = f"those of the model's quality.json ({quality.reference}), of SHA-256 {quality.prompts_sha256[:12]}"
        raise InvalidInput(source, f"prompts of SHA-256 {str(subjects.prompts_sha256)[:12]}", allowed)
    return quality


def _check_floor(source: str, floor: float, quality: Quality) -> None:
    """Photographs are known by their floor: a saved reference has not their name."""
    if abs(floor - quality.floor.value) > SAME_FLOOR * quality.floor.value:
        allowed = f"that of the model's quality.json ({quality.reference}), {quality.floor.value:.6g}"
        raise InvalidInput(source, f"a floor of {floor:.6g}", allowed)
