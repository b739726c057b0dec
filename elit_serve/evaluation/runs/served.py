"""How far the scheduler's idea of quality is from that of pictures as they were served.

The quality of a picture whose level changed in flight is put together from that of pictures of single levels. Here the
levels and strides that were executed under load, as `elit-serve bench --records` writes them, make new pictures: of
the classes and as many as the reference asks for, so that their distance can be compared. The very same classes and
seeds at full level and in all steps show what the load took from each picture.

Letters: n pictures, H x W, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.executor import offline
from elit_serve.engine.executor.graphs import open_executor
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import ElitError, InvalidInput
from elit_serve.evaluation.features import Described, FeatureExtractor
from elit_serve.evaluation.metrics import quality_of
from elit_serve.evaluation.runs.comparable import quality_compared_with
from elit_serve.evaluation.runs.evaluator import Evaluator
from elit_serve.evaluation.runs.sweep.search import plan_name
from elit_serve.files.records import read_records
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan
from elit_serve.plans.skips import Skips
from elit_serve.plans.step_kind import StepKind


@dataclass(frozen=True, kw_only=True)
class ServedError:
    """num_served: pictures in the records; num_plans: different ways in which they were made.

    interpolated: mean quality, as answers tell it. measured: floor / distance of the pictures made again.
    error: interpolated less measured; its half width is that of `measured`.
    psnr_db: mean, of each picture against the same seed at full level and in all steps.
    feature_distance: between these two, over that between pictures of different seeds; 0 is the same, 1 unrelated.
    """

    num_served: int
    num_plans: int
    num_samples: int
    mean_level: float
    distance: Estimate
    measured: Estimate
    interpolated: float
    psnr_db: float
    feature_distance: float

    @property
    def error(self) -> float:
        return self.interpolated - self.measured.value

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "error": self.error}


def read_served(file: Path, pipeline: Pipeline) -> list[Plan]:
    """How each picture of the model's default size in the records was made."""
    sizes = (None, pipeline.sizes.names[0])
    time_shift = pipeline.config.sampling.time_shift
    try:
        served = [
            Plan(
                levels=levels,
                strides=strides,
                guidance=_guidance(record.guidance or {}, pipeline),
                time_shift=time_shift,
                skips=_skips(record.skips or {}),
            )
            for record in read_records(file)
            if record.is_done and record.size in sizes
            for levels, strides in zip(record.levels or (), record.strides or (), strict=True)
        ]
    except (ValueError, KeyError, TypeError):
        raise InvalidInput("records", str(file), "a file of elit-serve bench --records") from None
    strange = sorted({level for plan in served for level in plan.levels}.difference(pipeline.config.levels))
    if not served or strange:
        allowed = f"pictures of this model that are done, of its default size; levels {strange} are not its own"
        raise InvalidInput("records", str(file), allowed)
    return served


def measure_served(
    pipeline: Pipeline, evaluator: Evaluator, extractor: FeatureExtractor, served: Sequence[Plan]
) -> ServedError:
    """Makes n pictures in the ways of `served`, taken in turn, and measures them."""
    reference = evaluator.reference
    quality_compared_with(pipeline, evaluator)
    plans = [served[index % len(served)] for index in range(reference.num_samples)]
    interpolated = [_interpolated(pipeline, plan) for plan in plans]
    full_level = max(pipeline.config.levels)
    full = [replace(plan, levels=(full_level,) * plan.grid_steps, strides=()) for plan in plans]
    conditions, seeds = evaluator.conditions, evaluator.seeds(0)
    pictures = remake(pipeline, plans, conditions, seeds, batch_size=evaluator.batch_size)
    best = remake(pipeline, full, conditions, seeds, batch_size=evaluator.batch_size)
    features, best_features = (_features(extractor, each, evaluator.batch_size) for each in (pictures, best))
    distance = reference.scorer(pipeline.device).frechet(Described(features=features))()
    return ServedError(
        num_served=len(served),
        num_plans=len(set(served)),
        num_samples=len(plans),
        mean_level=fmean(plan.mean_level for plan in plans),
        distance=distance,
        measured=quality_of(distance, evaluator.floor.value),
        interpolated=fmean(interpolated),
        psnr_db=_mean_psnr_db(pictures, best),
        feature_distance=_mean_distance(features, best_features) / _mean_distance(features, features.roll(1, 0)),
    )


def remake(
    pipeline: Pipeline, plans: Sequence[Plan], conditions: Sequence[Condition], seeds: Sequence[int], *, batch_size: int
) -> Tensor:
    """Pictures [n, H, W, 3], uint8 on the CPU, each by its own plan: whoever is at the same level shares a step."""
    executor = open_executor(pipeline, num_slots=len(plans), keeps=any(plan.skips for plan in plans))
    pictures = [
        pipeline.pictures([condition], [seed], plan)[0]
        for plan, condition, seed in zip(plans, conditions, seeds, strict=True)
    ]
    for picture in pictures:
        executor.add(picture)
    kinds = [plan.step_kinds(picture.shape) for plan, picture in zip(plans, pictures, strict=True)]
    for at in range(max(map(len, kinds))):
        alike: dict[StepKind, list[Picture]] = {}
        for picture, own in zip(pictures, kinds, strict=True):
            if at < len(own):
                alike.setdefault(own[at], []).append(picture)
        for kind, members in alike.items():
            for part in _parts(members, batch_size):
                offline.advance(executor, part, kind).wait()
    found = [sample for part in _parts(pictures, batch_size) for sample in executor.collect(part).result()]
    for sample in found:
        if isinstance(sample, ElitError):
            raise sample
    return torch.stack([sample for sample in found if isinstance(sample, Tensor)])


def _parts(pictures: Sequence[Picture], size: int) -> list[Sequence[Picture]]:
    return [pictures[start : start + size] for start in range(0, len(pictures), size)]


def _interpolated(pipeline: Pipeline, plan: Plan) -> float:
    assert pipeline.quality is not None
    quality = pipeline.quality.of(plan)
    if quality is None:
        raise InvalidInput(
            "records", plan_name(plan), "steps and guidance that are measured in the model's quality.json"
        )
    return quality


def _guidance(facts: Mapping[str, Any], pipeline: Pipeline) -> Guidance:
    """As an answer tells it."""
    start, end = facts["interval"]
    return pipeline.guidance(
        method=facts["method"], scale=facts["scale"], weak_budget=facts["weak_budget"], interval=(start, end)
    )


def _skips(facts: Mapping[str, Any]) -> Skips:
    """As an answer tells them."""
    return Skips(core=tuple(facts.get("core", ())), weak=tuple(facts.get("weak", ())))


def _features(extractor: FeatureExtractor, pictures: Tensor, batch_size: int) -> Tensor:
    """[n, H, W, 3], uint8 -> [n, F], on the CPU."""
    parts = [extractor(part.permute(0, 3, 1, 2).float() / 255) for part in torch.split(pictures, batch_size)]
    return torch.cat([part.features.cpu() for part in parts])


def _mean_psnr_db(pictures: Tensor, others: Tensor) -> float:
    """Of pairs of pictures that differ; those that are the same count as differing by half a grey level."""
    error = (pictures.float() - others.float()).square().flatten(1).mean(1).clamp(min=0.25)
    return float((10 * torch.log10(255**2 / error)).mean())


def _mean_distance(features: Tensor, others: Tensor) -> float:
    return float((features.double() - others.double()).norm(dim=1).mean())
