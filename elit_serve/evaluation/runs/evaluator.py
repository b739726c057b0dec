"""Measures plans of one model against one reference. Letters: n samples, F features."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from elit_serve.engine.conditions import Condition
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import InvalidInput
from elit_serve.evaluation.features import FeatureExtractor
from elit_serve.evaluation.features.words import WordsSeen, numbered
from elit_serve.evaluation.metrics import MeasuredSet, PlanMeasures, agreements, nearest
from elit_serve.evaluation.runs.background import in_background
from elit_serve.evaluation.runs.reference import Reference
from elit_serve.evaluation.runs.sets import PictureSets
from elit_serve.files.evaluation import Agreement, Scores
from elit_serve.photographs.grammar import WORDS, class_of, words_of
from elit_serve.plans.estimate import Estimate
from elit_serve.plans.plan import Plan

SETS_AHEAD = 2  # sampled while an earlier one is scored: a few quick plans in a row need not wait for scoring


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
        self.reference = reference
        self.batch_size = batch_size
        self.metric = reference.metric
        self._pipeline = pipeline
        self._extractor = extractor
        self._cache = cache
        self._on_pictures = on_pictures
        self._sets = self._sets_for(extractor)
        self._scorer = reference.scorer(pipeline.device)

    def _sets_for(self, extractor: FeatureExtractor) -> PictureSets:
        return PictureSets(
            self._pipeline,
            self.reference.subjects,
            extractor,
            batch_size=self.batch_size,
            cache=self._cache,
            on_pictures=self._on_pictures,
        )

    def of(self, pipeline: Pipeline) -> Evaluator:
        """One of another pipeline of the same model that does everything else alike."""
        return Evaluator(
            pipeline,
            self.reference,
            self._extractor,
            batch_size=self.batch_size,
            cache=self._cache,
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
        sampled = self._sets.sampled(plan, repeat)
        frechets = self._scorer.frechets(sampled.described)
        rate = self.reference.num_samples / sampled.sampling_seconds
        return lambda: MeasuredSet(frechets=tuple(frechets()), images_per_second=rate)

    def measure(self, plan: Plan, *, repeats: int, first_repeat: int = 0) -> PlanMeasures:
        """Samples n pictures `repeats` times, each time with other seeds, and measures each set."""
        if repeats < 1:
            raise InvalidInput("seeds", repeats, "at least one")
        sets = [self._sets.sampled(plan, repeat) for repeat in range(first_repeat, first_repeat + repeats)]
        num_samples = self.reference.num_samples
        return PlanMeasures.over(
            plan,
            [self._scorer.score(each.described) for each in sets],
            num_samples=num_samples,
            images_per_second=repeats * num_samples / sum(each.sampling_seconds for each in sets),
        )

    @cached_property
    def _words_said(self) -> Tensor | None:
        """What the prompts say of each part of a caption, [n, P]; None where one is no caption of the grammar."""
        words = [words_of(prompt) for prompt in self.reference.prompts]
        known = [each for each in words if each is not None]
        return numbered(known) if known and len(known) == len(words) else None

    @property
    def tells_words(self) -> bool:
        """Whether `following` can say something."""
        return self._words_said is not None

    def following(self, plan: Plan) -> dict[str, Agreement] | None:
        """How many pictures show what their prompts say, by the part of a caption, where that can be told.

        The pictures are those of the first repeat, made a second time: what is kept of them is their features.
        """
        if self._words_said is None:
            return None
        seen = self._sets_for(WordsSeen()).sampled(plan, repeat=0).described.features
        of_words = agreements(seen, self._words_said, list(WORDS))
        of_class = self._class_agreement(self.features(plan, 0))
        return of_words if of_class is None else of_words | {"class": of_class}

    @cached_property
    def floor_class(self) -> Agreement | None:
        """How many held-out photographs are nearest to one of their own class, where captions tell it."""
        return self._class_agreement(self.reference.held_out)

    def _class_agreement(self, features: Tensor) -> Agreement | None:
        """How many of n pictures [n, F] are nearest to a reference photograph of the class that their prompt names."""
        if self._classes is None:
            return None
        said, of_photographs = self._classes
        device = self._pipeline.device
        found = nearest(features.to(device), self.reference.features.to(device))
        return agreements(of_photographs[found.indices.cpu()].unsqueeze(1), said.unsqueeze(1), ["class"])["class"]

    @cached_property
    def _classes(self) -> tuple[Tensor, Tensor] | None:
        """The class, by a number, of each prompt [n] and reference photograph [m]; None where captions name none, or a
        file has the photographs' features alone."""
        of_prompts = [class_of(prompt) for prompt in self.reference.prompts]
        of_photographs = [class_of(photograph.caption) for photograph in self.reference.photographs]
        if not of_prompts or not of_photographs or None in (*of_prompts, *of_photographs):
            return None
        number_of = {name: number for number, name in enumerate(dict.fromkeys((*of_prompts, *of_photographs)))}
        said, shown = (torch.tensor([number_of[name] for name in names]) for names in (of_prompts, of_photographs))
        return said, shown

    def features(self, plan: Plan, repeat: int) -> Tensor:
        """Features of one set of samples, in the order of `conditions`. -> [n, F], float32, CPU"""
        return self._sets.sampled(plan, repeat).described.features

    def seeds(self, repeat: int) -> list[int]:
        """The seeds of one set."""
        return self._sets.seeds(repeat)

    @property
    def conditions(self) -> list[Condition]:
        """What the n pictures of every set are of."""
        return self._sets.conditions
