"""All metrics of one set of pictures against a reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from elit_serve.evaluation.features import Described
from elit_serve.evaluation.metrics.frechet import FeatureStatistics, FrechetReference
from elit_serve.evaluation.metrics.inception_score import inception_scores
from elit_serve.evaluation.metrics.kernel import KernelReference
from elit_serve.evaluation.metrics.measures import from_halves, whole_and_halves
from elit_serve.evaluation.metrics.nearest import nearest
from elit_serve.evaluation.metrics.precision_recall import ManifoldReference
from elit_serve.files.evaluation import Scores
from elit_serve.plans.estimate import Estimate


class Scorer:
    """The photographs' side of every metric, computed once, when it is first asked for.

    features: of the reference photographs [m, F]. held_out: photographs that nothing was made from, whose scores are
    the floor: real against real, at the n of the samples.
    """

    def __init__(self, features: Tensor, held_out: Described, device: torch.device) -> None:
        self.held_out = held_out
        self._features = features
        self._device = device

    @cached_property
    def _photographs(self) -> Tensor:
        return self._features.to(self._device).double()

    @cached_property
    def _frechet(self) -> FrechetReference:
        return FrechetReference(FeatureStatistics.of(self._photographs))

    @cached_property
    def _kernel(self) -> KernelReference:
        return KernelReference(self._photographs)

    @cached_property
    def _manifold(self) -> ManifoldReference:
        return ManifoldReference(self._photographs)

    @cached_property
    def _held_out_nearest(self) -> float:
        return nearest(self.held_out.features.to(self._device), self._photographs).median_distance

    def frechet(self, described: Described) -> Callable[[], Estimate]:
        """The Fréchet distance, with an interval from random halves of the pictures; see `frechets`."""
        distances = self.frechets(described)
        return lambda: from_halves(distances())

    def frechets(self, described: Described) -> Callable[[], list[float]]:
        """The Fréchet distance of all pictures and of random halves of them, as `whole_and_halves` orders them.

        What is left to do when this returns needs the CPU alone, and may be done on any thread.
        """
        samples = described.features.to(self._device).double()  # [n, F]
        return self._frechet.prepared(samples, whole_and_halves(len(samples), samples.device)).distances

    def score(self, described: Described) -> Scores:
        """Every metric, each with an interval from random halves of the pictures."""
        samples = described.features.to(self._device).double()  # [n, F]
        member = whole_and_halves(len(samples), samples.device)  # [S, n]
        neighbours = self._manifold.neighbours(samples, member)
        ratios = [float(neighbours.nearest[inside].median()) / self._held_out_nearest for inside in member]
        scores = None
        if described.logits is not None:
            scores = from_halves(inception_scores(described.logits.to(samples.device), member))
        return Scores(
            frechet=from_halves(self._frechet.distances(samples, member)),
            kernel=from_halves(self._kernel.distances(samples, member)),
            precision=from_halves(neighbours.precisions),
            recall=from_halves(neighbours.recalls),
            inception_score=scores,
            nearest_ratio=from_halves(ratios),
        )
