"""All metrics of one set of pictures against a reference."""

from __future__ import annotations

import torch

from elit_serve.evaluation.features import Described
from elit_serve.evaluation.frechet import FeatureStatistics, FrechetReference
from elit_serve.evaluation.inception_score import inception_scores
from elit_serve.evaluation.kernel import KernelReference
from elit_serve.evaluation.measures import Estimate, Scores, whole_and_halves
from elit_serve.evaluation.nearest import nearest
from elit_serve.evaluation.precision_recall import ManifoldReference
from elit_serve.evaluation.reference import Reference


class Scorer:
    """The reference's side of every metric, computed once."""

    def __init__(self, reference: Reference, device: torch.device) -> None:
        self._reference = reference
        self._photographs = reference.features.to(device).double()
        self._frechet = FrechetReference(FeatureStatistics.of(self._photographs))
        self._kernel = KernelReference(self._photographs)
        self._manifold = ManifoldReference(self._photographs)
        held_out = reference.held_out.to(device)
        self._held_out_nearest = nearest(held_out, self._photographs).median_distance

    def floors(self) -> Scores:
        """What the held-out photographs score: real against real, at the n of the samples."""
        return self.score(Described(features=self._reference.held_out, logits=self._reference.held_out_logits))

    def score(self, described: Described) -> Scores:
        """Every metric, each with an interval from random halves of the pictures."""
        samples = described.features.to(self._photographs.device).double()  # [n, F]
        member = whole_and_halves(len(samples), samples.device)  # [S, n]
        precisions, recalls = self._manifold.precision_and_recall(samples, member)
        distances = nearest(samples, self._photographs).distances
        ratios = [float(distances[inside].median()) / self._held_out_nearest for inside in member]
        scores = None
        if described.logits is not None:
            scores = _estimate(inception_scores(described.logits.to(samples.device), member))
        return Scores(
            frechet=_estimate(self._frechet.distances(samples, member)),
            kernel=_estimate(self._kernel.distances(samples, member)),
            precision=_estimate(precisions),
            recall=_estimate(recalls),
            inception_score=scores,
            nearest_ratio=_estimate(ratios),
        )


def _estimate(figures: list[float]) -> Estimate:
    return Estimate.of(figures[0], figures[1:])
