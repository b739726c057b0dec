"""Measures plans of one model against one reference. Letters: n samples, F features."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import device_name
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import Described, FeatureCache, FeatureExtractor, Sampled
from elit_serve.evaluation.metrics import MeasuredSet, PlanMeasures
from elit_serve.evaluation.runs.background import in_background
from elit_serve.evaluation.runs.reference import Reference
from elit_serve.evaluation.runs.sampler import Sampler
from elit_serve.files.evaluation import Scores
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.plan import Plan

PICTURES_AT_ONCE = 4096  # on the host, sampled without anything between, and then described
SETS_AHEAD = 2  # sampled while an earlier one is scored: a few quick plans in a row need not wait for scoring
SEEDS_PER_REPEAT = 1_000_000  # sample i of repeat r has the seed 1,000,000 r + i


class Evaluator:
    """Plans in, figures out. Figures are computed in float64 on the pipeline's device.

    cache: a folder for the features of finished sets, or None. on_pictures is told how many pictures were just done.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        reference: Reference,
        extractor: FeatureExtractor,
        *,
        batch_size: int,
        cache: Path | None,
        on_pictures: Callable[[int], None] | None = None,
    ) -> None:
        reference.check(pipeline, extractor)
        if reference.num_samples >= SEEDS_PER_REPEAT:
            raise InvalidInput("held_out", reference.num_samples, f"fewer than {SEEDS_PER_REPEAT} photographs")
        self.reference = reference
        self.batch_size = batch_size
        self.metric = reference.metric
        self._pipeline = pipeline
        self._extractor = extractor
        self._sampler = Sampler(pipeline, batch_size=batch_size)
        self._folder = cache
        self._cache = None if cache is None else FeatureCache(cache)
        self._on_pictures = on_pictures
        self._scorer = reference.scorer(pipeline.device)

    def of(self, pipeline: Pipeline) -> Evaluator:
        """One of another pipeline of the same model that does everything else alike."""
        return Evaluator(
            pipeline,
            self.reference,
            self._extractor,
            batch_size=self.batch_size,
            cache=self._folder,
            on_pictures=self._on_pictures,
        )

    @cached_property
    def floor(self) -> Estimate:
        """The Fréchet distance of held-out photographs, as many as there are samples in a set."""
        return self._scorer.frechet(self._scorer.held_out)()

    @cached_property
    def floors(self) -> Scores:
        """All figures of the held-out photographs: real against real at the same n."""
        return self._scorer.score(self._scorer.held_out)

    def distances(self, sets: Iterable[tuple[Plan, int]]) -> Iterator[MeasuredSet]:
        """The Fréchet distance of each set of pictures, by its plan and repeat, in this order.

        A set's distance is finished in the background while the next ones are sampled.
        """
        return in_background(lambda finish: finish(), (self._begun(*each) for each in sets), ahead=SETS_AHEAD)

    def _begun(self, plan: Plan, repeat: int) -> Callable[[], MeasuredSet]:
        sampled = self._sampled(plan, repeat)
        frechets = self._scorer.frechets(sampled.described)
        rate = self.reference.num_samples / sampled.sampling_seconds
        return lambda: MeasuredSet(frechets=tuple(frechets()), images_per_second=rate)

    def measure(self, plan: Plan, *, repeats: int, first_repeat: int = 0) -> PlanMeasures:
        """Samples n pictures `repeats` times, each time with other seeds, and measures each set."""
        if repeats < 1:
            raise InvalidInput("seeds", repeats, "at least one")
        sets = [self._sampled(plan, repeat) for repeat in range(first_repeat, first_repeat + repeats)]
        num_samples = self.reference.num_samples
        return PlanMeasures.over(
            plan,
            [self._scorer.score(each.described) for each in sets],
            num_samples=num_samples,
            images_per_second=repeats * num_samples / sum(each.sampling_seconds for each in sets),
        )

    def features(self, plan: Plan, repeat: int) -> Tensor:
        """Features of one set of samples, in the order of `reference.held_out_classes`. -> [n, F], float32, CPU"""
        return self._sampled(plan, repeat).described.features

    def seeds(self, repeat: int) -> list[int]:
        """The seeds of one set."""
        return [repeat * SEEDS_PER_REPEAT + i for i in range(self.reference.num_samples)]

    def _sampled(self, plan: Plan, repeat: int) -> Sampled:
        facts = self._facts(plan, repeat)
        known = None if self._cache is None else self._cache.read(facts)
        if known is not None and len(known.described.features) == self.reference.num_samples:
            self._report(self.reference.num_samples)
            return known
        sampled = self._sample(plan, repeat)
        if self._cache is not None:
            self._cache.write(facts, sampled)
        return sampled

    def _sample(self, plan: Plan, repeat: int) -> Sampled:
        """Sampling and describing take turns: each would slow the other down, and sampling is timed alone."""
        conditions = [self._pipeline.conditions[index] for index in self.reference.held_out_classes]
        seeds = self.seeds(repeat)
        parts, sampling_s = [], 0.0
        for start in range(0, len(seeds), PICTURES_AT_ONCE):
            chosen = slice(start, start + PICTURES_AT_ONCE)
            self._sampler.prepare(plan, len(seeds[chosen]))
            started_s = time.perf_counter()
            batches = []
            for pictures in self._sampler.pictures(plan, conditions[chosen], seeds[chosen]):
                batches.append(pictures)
                self._report(len(pictures))
            sampling_s += time.perf_counter() - started_s
            parts += [self._described(pictures) for pictures in batches]
        return Sampled(described=Described.cat(parts), sampling_seconds=sampling_s)

    def _described(self, pictures: Tensor) -> Described:
        """pictures [B, H, W, 3], uint8 -> on the CPU."""
        described = self._extractor(pictures.to(self._pipeline.device).permute(0, 3, 1, 2).float() / 255)
        logits = described.logits
        return Described(features=described.features.cpu(), logits=None if logits is None else logits.cpu())

    def _report(self, count: int) -> None:
        if self._on_pictures is not None:
            self._on_pictures(count)

    def _facts(self, plan: Plan, repeat: int) -> dict[str, object]:
        """All that the features of a set depend on."""
        shape, usual = self._pipeline.sizes.default, self._pipeline.config.default_shape
        return {
            **({} if shape == usual else {"shape": shape.name}),
            "plan": {name: value for name, value in asdict(plan).items() if name != "skips" or plan.skips},
            "repeat": repeat,
            "classes": self.reference.held_out_classes,
            "model": self._pipeline.model_hash,
            "dtype": self._pipeline.precision,
            "extractor": self._extractor.fingerprint,
            "batch_size": self.batch_size,
            "device": device_name(self._pipeline.device),
            "threads": torch.get_num_threads() if self._pipeline.device.type == "cpu" else None,
            "torch": torch.__version__,
        }
