"""Sets of a model's pictures, described by features: as many as are measured together, each with a seed of its own."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import device_name
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import Described, FeatureCache, FeatureExtractor, Sampled
from elit_serve.evaluation.runs.sampler import Sampler
from elit_serve.plans.plan import Plan

PICTURES_AT_ONCE = 4096  # on the host, sampled without anything between, and then described
SEEDS_PER_REPEAT = 1_000_000  # sample i of repeat r has the seed 1,000,000 r + i


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """What the pictures of every set are of, one for each.

    classes: indices of the model's. prompts: where there are no classes, or they were named by words.
    """

    classes: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.classes) or len(self.prompts)

    def of(self, pipeline: Pipeline) -> list[Condition]:
        """Raises `InvalidInput` where a prompt is none of this model."""
        known = pipeline.conditions
        return [*(known[index] for index in self.classes), *(known.prompted(prompt) for prompt in self.prompts)]

    @property
    def prompts_sha256(self) -> str | None:
        """Of all prompts in their order; None of classes."""
        return hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest() if self.prompts else None

    @property
    def facts(self) -> dict[str, object]:
        """By which the features of a set are known again."""
        return {"prompts": self.prompts_sha256} if self.prompts else {"classes": self.classes}


class PictureSets:
    """Makes sets and keeps their features.

    cache: a folder for the features of finished sets, or None. on_pictures is told how many pictures were just done.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        subjects: Subjects,
        extractor: FeatureExtractor,
        *,
        batch_size: int,
        cache: Path | None,
        on_pictures: Callable[[int], None] | None = None,
    ) -> None:
        if len(subjects) >= SEEDS_PER_REPEAT:
            raise InvalidInput("samples", len(subjects), f"fewer than {SEEDS_PER_REPEAT} pictures in a set")
        self.batch_size = batch_size
        self.conditions = subjects.of(pipeline)
        self._pipeline = pipeline
        self._subjects = subjects
        self._extractor = extractor
        self._sampler = Sampler(pipeline, batch_size=batch_size)
        self._cache = None if cache is None else FeatureCache(cache)
        self._on_pictures = on_pictures

    def __len__(self) -> int:
        """n: the pictures of each."""
        return len(self._subjects)

    def seeds(self, repeat: int) -> list[int]:
        """The seeds of one set."""
        return [repeat * SEEDS_PER_REPEAT + i for i in range(len(self))]

    def sampled(self, plan: Plan, repeat: int) -> Sampled:
        """One set: read if it is known, or made and kept. Features [n, F], float32, CPU."""
        facts = self._facts(plan, repeat)
        known = None if self._cache is None else self._cache.read(facts)
        if known is not None and len(known.described.features) == len(self):
            self._report(len(self))
            return known
        sampled = self._sample(plan, repeat)
        if self._cache is not None:
            self._cache.write(facts, sampled)
        return sampled

    def _sample(self, plan: Plan, repeat: int) -> Sampled:
        """Sampling and describing take turns: each would slow the other down, and sampling is timed alone."""
        seeds = self.seeds(repeat)
        parts, sampling_s = [], 0.0
        for start in range(0, len(seeds), PICTURES_AT_ONCE):
            chosen = slice(start, start + PICTURES_AT_ONCE)
            self._sampler.prepare(plan, len(seeds[chosen]))
            started_s = time.perf_counter()
            batches = []
            for pictures in self._sampler.pictures(plan, self.conditions[chosen], seeds[chosen]):
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
        """All that the features of a set depend on, but for the files of an autoencoder, which no hash is of."""
        shape, usual = self._pipeline.sizes.default, self._pipeline.config.default_shape
        encoder = self._pipeline.encoder_sha256
        return {
            **({} if shape == usual else {"shape": shape.name}),
            "plan": {name: value for name, value in asdict(plan).items() if name != "skips" or plan.skips},
            "repeat": repeat,
            **self._subjects.facts,
            "model": self._pipeline.model_hash,
            **({} if encoder is None else {"encoder": encoder}),
            "dtype": self._pipeline.precision,
            "extractor": self._extractor.fingerprint,
            "batch_size": self.batch_size,
            "device": device_name(self._pipeline.device),
            "threads": torch.get_num_threads() if self._pipeline.device.type == "cpu" else None,
            "torch": torch.__version__,
        }
