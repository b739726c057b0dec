"""What a model card states of a checkpoint, measured: distance and novelty at each level, beside their floor.

Letters: B batch, H x W picture, n samples, m training photographs, F features.
"""

from __future__ import annotations

import json
import math
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

import elit_serve
from elit_serve.budget import check_level
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor, photograph_features
from elit_serve.evaluation.frechet import FeatureStatistics, FrechetReference
from elit_serve.evaluation.nearest import Nearest, nearest, nearest_ratio
from elit_serve.pictures import Photograph
from elit_serve.sampling import Plan

SEEDS_PER_REPEAT = 1_000_000

Progress = Callable[[int], None]  # called with the number of pictures just done


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What samples are measured against, computed once.

    training_features: [m, F]. reference: the statistics of `num_reference` of them. class_ids: one per held-out
    photograph, so that n samples repeat the held-out set's own class mix. floor: the Fréchet distance of the held-out
    photographs, what a perfect model would score.
    """

    extractor: FeatureExtractor
    training: tuple[Photograph, ...]
    training_features: Tensor
    reference: FrechetReference
    class_ids: tuple[int, ...]
    floor: float
    held_out_nearest: Nearest

    @property
    def metric(self) -> str:
        return f"{self.extractor.name}-FD"

    @property
    def num_samples(self) -> int:
        return len(self.class_ids)


@dataclass(frozen=True, kw_only=True)
class PlanQuality:
    """What a plan is worth: Fréchet distances of several repeats, each with n samples of its own seeds.

    nearest_ratio: median nearest-training distance of the samples over that of the held-out photographs.
    """

    plan: Plan
    distances: tuple[float, ...]
    nearest_ratio: float

    @property
    def mean(self) -> float:
        return fmean(self.distances)

    @property
    def standard_error(self) -> float:
        """Of the mean over repeats; NaN for one repeat."""
        repeats = len(self.distances)
        return stdev(self.distances) / math.sqrt(repeats) if repeats > 1 else math.nan


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The measured part of a model card. `levels` holds a plan per level, the highest first."""

    model: str
    model_hash: str
    metric: str
    features_sha256: str
    num_samples: int
    num_training: int
    num_reference: int
    floor: float
    held_out_median_nearest: float
    levels: tuple[PlanQuality, ...]
    latents_per_group: int
    provenance: dict[str, Any]

    def as_json(self) -> str:
        facts = asdict(self) | {"levels": [self._level_facts(quality) for quality in self.levels]}
        return json.dumps(facts, indent=2)

    def _level_facts(self, quality: PlanQuality) -> dict[str, Any]:
        single = len(quality.distances) == 1
        return {
            "level": quality.plan.levels[0],
            "budget": quality.plan.levels[0] / self.latents_per_group,
            "distance_mean": quality.mean,
            "distance_standard_error": None if single else quality.standard_error,
            "distances": list(quality.distances),
            "distance_over_floor": quality.mean / self.floor,
            "nearest_ratio": quality.nearest_ratio,
            "plan": asdict(quality.plan),
        }

    def as_markdown(self) -> str:
        """A table with a row per level, and what it means below."""
        lines = [
            f"| budget | level | {self.metric} | over the floor | nearest-training ratio |",
            "|---|---|---|---|---|",
        ]
        for quality in self.levels:
            level = quality.plan.levels[0]
            spread = f" ± {quality.standard_error:.1f}" if len(quality.distances) > 1 else ""
            lines.append(
                f"| {level / self.latents_per_group:.4g} | {level} | {quality.mean:.1f}{spread} "
                f"| {quality.mean / self.floor:.2f} | {quality.nearest_ratio:.2f} |"
            )
        lines += [
            f"| held-out photographs | | {self.floor:.1f} | 1.00 | 1.00 |",
            "",
            f"{self.metric} of {self.num_samples} samples in the held-out set's class mix against {self.num_reference} "
            f"training photographs, mean ± standard error over {len(self.levels[0].distances)} sets of seeds; lower is "
            "better, and held-out photographs score the floor. Nearest-training ratio: median distance in feature "
            f"space to the nearest of {self.num_training} training photographs, over that of held-out photographs; "
            "copies would score 0.",
        ]
        return "\n".join(lines) + "\n"


def prepare(
    pipeline: Pipeline,
    training: Sequence[Photograph],
    held_out: Sequence[Photograph],
    extractor: FeatureExtractor,
    *,
    num_reference: int | None = None,
    batch_size: int = 128,
    on_pictures: Progress | None = None,
) -> Benchmark:
    """Reads both sets of photographs at the model's picture size.

    `num_reference` limits the training photographs behind the Fréchet distance to an even selection (the nearest
    photograph is looked for among all of them); the distance and its floor fall as this number grows.
    """
    for field, photographs in (("reference", training), ("held_out", held_out)):
        if len(photographs) < 2:
            raise InvalidInput(field, len(photographs), "at least two photographs")
    if len(held_out) >= SEEDS_PER_REPEAT:
        raise InvalidInput("held_out", len(held_out), f"fewer than {SEEDS_PER_REPEAT} photographs")
    if num_reference is not None and not 2 <= num_reference <= len(training):
        raise InvalidInput("reference_size", num_reference, f"between 2 and the {len(training)} training photographs")
    class_ids = tuple(pipeline.class_id(photograph.label, field="held_out") for photograph in held_out)
    height, width = picture_size(pipeline)

    def features(photographs: Sequence[Photograph]) -> Tensor:
        return photograph_features(
            extractor, photographs, height=height, width=width, batch_size=batch_size, on_batch=on_pictures
        )

    held_out_features, training_features = features(held_out), features(training)
    chosen = evenly(len(training), num_reference or len(training))
    reference = FrechetReference(FeatureStatistics.of(training_features[chosen]))
    return Benchmark(
        extractor=extractor,
        training=tuple(training),
        training_features=training_features,
        reference=reference,
        class_ids=class_ids,
        floor=reference.distance(FeatureStatistics.of(held_out_features)),
        held_out_nearest=nearest(held_out_features, training_features),
    )


def evaluate_plan(
    pipeline: Pipeline,
    plan: Plan,
    benchmark: Benchmark,
    *,
    repeats: int = 5,
    batch_size: int = 128,
    on_pictures: Progress | None = None,
) -> PlanQuality:
    """Samples n pictures `repeats` times, each time with other seeds, and measures them."""
    if repeats < 1:
        raise InvalidInput("seeds", repeats, "at least one")
    sets = [
        sample_features(pipeline, plan, benchmark, repeat=repeat, batch_size=batch_size, on_pictures=on_pictures)
        for repeat in range(repeats)
    ]
    return PlanQuality(
        plan=plan,
        distances=tuple(benchmark.reference.distance(FeatureStatistics.of(features)) for features in sets),
        nearest_ratio=nearest_ratio(nearest(torch.cat(sets), benchmark.training_features), benchmark.held_out_nearest),
    )


def sample_features(
    pipeline: Pipeline,
    plan: Plan,
    benchmark: Benchmark,
    *,
    repeat: int = 0,
    batch_size: int = 128,
    on_pictures: Progress | None = None,
) -> Tensor:
    """Features of n samples in the held-out class mix, rounded to 8 bits as a user gets them. -> [n, F]

    Sample i of repeat r has the seed 1,000,000 r + i.
    """
    features = []
    for start in range(0, benchmark.num_samples, batch_size):
        class_ids = benchmark.class_ids[start : start + batch_size]
        seeds = [repeat * SEEDS_PER_REPEAT + start + i for i in range(len(class_ids))]
        pictures = pipeline.sample(class_ids, seeds, plan)  # [B, 3, H, W]
        features.append(benchmark.extractor((pictures * 255).round() / 255))
        if on_pictures is not None:
            on_pictures(len(class_ids))
    return torch.cat(features)


def evaluate_model(
    pipeline: Pipeline,
    benchmark: Benchmark,
    plan: Plan,
    *,
    levels: Sequence[int] | None = None,
    repeats: int = 5,
    batch_size: int = 128,
    on_pictures: Progress | None = None,
) -> ModelCard:
    """`plan` at each of `levels` (default: all that the model was trained at), the highest first."""
    chosen = sorted(set(levels or pipeline.config.levels), reverse=True)
    plans = [plan.at_level(check_level(level, pipeline.config.levels)) for level in chosen]
    qualities = [
        evaluate_plan(pipeline, each, benchmark, repeats=repeats, batch_size=batch_size, on_pictures=on_pictures)
        for each in plans
    ]
    return ModelCard(
        model=pipeline.config.name,
        model_hash=pipeline.model_hash,
        metric=benchmark.metric,
        features_sha256=benchmark.extractor.fingerprint,
        num_samples=benchmark.num_samples,
        num_training=len(benchmark.training),
        num_reference=benchmark.reference.statistics.n,
        floor=benchmark.floor,
        held_out_median_nearest=benchmark.held_out_nearest.median_distance,
        levels=tuple(qualities),
        latents_per_group=pipeline.config.spec.latents_per_group,
        provenance=provenance(pipeline, batch_size),
    )


def picture_size(pipeline: Pipeline) -> tuple[int, int]:
    """(H, W) of the model's pictures, by making one in one step."""
    plan = pipeline.plan(levels=[max(pipeline.config.levels)])
    height, width = pipeline.sample([0], [0], plan).shape[2:]
    return height, width


def provenance(pipeline: Pipeline, batch_size: int) -> dict[str, Any]:
    """What a measured figure depends on beside the plan."""
    device = pipeline.device
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU",
        "dtype": pipeline.precision,
        "batch_size": batch_size,
        "elit_serve": elit_serve.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def evenly(count: int, wanted: int) -> list[int]:
    """`wanted` of the indices 0..count - 1, evenly spaced.

    >>> evenly(10, 4)
    [0, 3, 6, 9]
    """
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)] if wanted > 1 else [0][:wanted]
