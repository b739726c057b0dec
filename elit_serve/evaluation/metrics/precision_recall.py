"""Precision and recall of samples by the k-nearest-neighbour manifold (Kynkäänniemi et al. 2019), in chunks.

A set's manifold is the union of balls around its members, each reaching its k-th nearest other member. Letters: n
samples, m photographs, F features, S subsets of the samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3
CHUNK = 1024


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Samples among the photographs.

    precisions: for each subset, its share in the photographs' manifold. recalls: the share of the photographs in the
    subset's manifold. nearest: [n], the distance of each sample to the nearest photograph.
    """

    precisions: list[float]
    recalls: list[float]
    nearest: Tensor


class ManifoldReference:
    """The photographs' manifold."""

    def __init__(self, features: Tensor) -> None:
        """features: [m, F] with m > 3"""
        self._features = features.double()
        everyone = torch.ones(1, len(features), dtype=torch.bool, device=features.device)
        self._radii = _radii(self._features, everyone)[0]  # [m]

    def neighbours(self, samples: Tensor, member: Tensor) -> Neighbours:
        """Of each subset `member` [S, n] of samples [n, F], at least four in each."""
        samples = samples.double()
        radii = _radii(samples, member)  # [S, n]
        is_real = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
        nearest = torch.full((len(samples),), torch.inf, dtype=torch.float64, device=samples.device)
        recalled = torch.zeros(len(member), device=samples.device)
        for photographs, reach in zip(torch.split(self._features, CHUNK), torch.split(self._radii, CHUNK), strict=True):
            distances = torch.cdist(photographs, samples)  # [c, n]
            nearest = torch.minimum(nearest, distances.amin(dim=0))
            is_real |= (distances <= reach[:, None]).any(dim=0)
            for subset, (own, inside) in enumerate(zip(radii, member, strict=True)):
                recalled[subset] += ((distances <= own) & inside).any(dim=1).sum()
        precisions = (member & is_real).sum(dim=1) / member.sum(dim=1)
        return Neighbours(
            precisions=precisions.tolist(), recalls=(recalled / len(self._features)).tolist(), nearest=nearest
        )


def _radii(features: Tensor, member: Tensor) -> Tensor:
    """Distance of each of features [n, F] to its k-th nearest other member of each subset [S, n]. -> [S, n]"""
    parts = []
    for start in range(0, len(features), CHUNK):
        distances = torch.cdist(features[start : start + CHUNK], features)  # [c, n]
        distances.diagonal(start).fill_(torch.inf)  # nobody is a neighbour of his own
        parts.append(torch.stack([distances[:, inside].kthvalue(NEIGHBOURS, dim=1).values for inside in member]))
    return torch.cat(parts, dim=1)
