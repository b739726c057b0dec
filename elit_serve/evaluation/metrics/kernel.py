"""Kernel distance: the unbiased squared maximum mean discrepancy of two sets of features. float64, in blocks.

With FID's Inception it is the KID. Letters: n samples, m photographs, F features, S subsets of the samples.
"""

from __future__ import annotations

import torch
from torch import Tensor

from elit_serve.errors import InvalidInput

BLOCK = 1024


def polynomial(x: Tensor, y: Tensor) -> Tensor:
    """k(x, y) = (x.y / F + 1)^3 of x [a, F] and y [b, F] (Binkowski et al. 2018, section 4). -> [a, b]"""
    return (x @ y.T / x.shape[1] + 1) ** 3


class KernelReference:
    """The photographs' side of the distance, with their own mean similarity taken once."""

    def __init__(self, features: Tensor) -> None:
        """features: [m, F]"""
        if features.ndim != 2 or len(features) < 2:
            raise InvalidInput("features", list(features.shape), "at least two vectors [m, F]")
        self._features = features.double()
        everyone = torch.ones(1, len(features), dtype=torch.bool, device=features.device)
        self._within = _mean_within(self._features, everyone)[0]

    def distances(self, samples: Tensor, member: Tensor) -> list[float]:
        """The unbiased MMD^2 (Gretton et al. 2012, equation 3) of each subset of samples [n, F].

        member: [S, n] bool, which samples are in which subset; at least two in each. It may be negative: its
        expectation is zero for equal distributions, at every n.
        """
        samples = samples.double()
        if samples.shape[1] != self._features.shape[1]:
            raise InvalidInput("features", samples.shape[1], f"the reference has {self._features.shape[1]} features")
        similarity = torch.cat(
            [polynomial(part, self._features).mean(dim=1) for part in torch.split(samples, BLOCK)]
        )  # [n]
        across = member.double() @ similarity / member.sum(dim=1)
        found: list[float] = (self._within + _mean_within(samples, member) - 2 * across).tolist()
        return found


def _mean_within(features: Tensor, member: Tensor) -> Tensor:
    """Mean of k over the ordered pairs of different members of each subset. [n, F], [S, n] -> [S]"""
    weights = member.double()
    total = torch.zeros(len(member), dtype=torch.float64, device=features.device)
    for start in range(0, len(features), BLOCK):
        rows = slice(start, start + BLOCK)
        similarity = polynomial(features[rows], features)  # [b, n]
        similarity.diagonal(start).zero_()
        total += (weights[:, rows] * (similarity @ weights.T).T).sum(dim=1)
    counts = weights.sum(dim=1)
    return total / (counts * (counts - 1))
