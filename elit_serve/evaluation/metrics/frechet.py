"""Fréchet distance between Gaussians fitted to two sets of features. float64 throughout, on whatever device.

Letters: n samples, F features.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from elit_serve.errors import InvalidInput


@dataclass(frozen=True, kw_only=True)
class FeatureStatistics:
    """Mean [F] and unbiased covariance [F, F] of n feature vectors, float64."""

    mean: Tensor
    covariance: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Of features [n, F]. n may be below F: the covariance is then rank-deficient, which is allowed."""
        if features.ndim != 2 or len(features) < 2:
            raise InvalidInput("features", list(features.shape), "a covariance needs at least two vectors [n, F]")
        features = features.double()
        if not bool(torch.isfinite(features).all()):
            raise InvalidInput("features", "NaN or infinite values", "finite numbers")
        return cls(
            mean=features.mean(0), covariance=torch.cov(features.T).reshape(2 * features.shape[1:]), n=len(features)
        )


class FrechetReference:
    """One side of the distance, with the root of its covariance taken once."""

    def __init__(self, statistics: FeatureStatistics) -> None:
        self.statistics = statistics
        values, vectors = torch.linalg.eigh(statistics.covariance)
        self._root = (vectors * _non_negative(values).sqrt()) @ vectors.T  # [F, F]

    def distance(self, other: FeatureStatistics) -> float:
        """The squared Fréchet distance |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

        Heusel et al. 2017, equation 6. S1 S2 has the eigenvalues of the symmetric S1^(1/2) S2 S1^(1/2), so the trace
        of its root is the sum of their roots.
        """
        mine = self.statistics
        if mine.mean.shape != other.mean.shape:
            raise InvalidInput("features", other.mean.shape[0], f"the reference has {mine.mean.shape[0]} features")
        product = self._root @ other.covariance @ self._root
        values = torch.linalg.eigvalsh((product + product.T) / 2)
        traces = mine.covariance.trace() + other.covariance.trace() - 2 * _non_negative(values).sqrt().sum()
        return float((mine.mean - other.mean).square().sum() + traces)

    def distances(self, samples: Tensor, member: Tensor) -> list[float]:
        """The squared distance of each subset `member` [S, n] (bool) of samples [n, F]."""
        return self.prepared(samples, member).distances()

    def prepared(self, samples: Tensor, member: Tensor) -> PreparedDistances:
        """All of `distances` that the device of the samples is quick at, done.

        S1^(1/2) S2 S1^(1/2) is Y' Y with Y = X S1^(1/2), X centred and divided by the root of n - 1. Every subset takes
        its rows of one product for all samples. For n < F, Y Y' has the same eigenvalues but for zeros.
        """
        samples, mine = samples.double(), self.statistics
        if samples.shape[1] != len(mine.mean):
            raise InvalidInput("features", samples.shape[1], f"the reference has {len(mine.mean)} features")
        if not bool(torch.isfinite(samples).all()):
            raise InvalidInput("features", "NaN or infinite values", "finite numbers")
        shifted = samples - mine.mean  # far fewer digits cancel below than with the features as they are
        rooted = shifted @ self._root  # [n, F]
        products, rest = [], []
        for inside in member:
            own, y = shifted[inside], _centred(rooted[inside])
            products.append((y @ y.T if len(y) < y.shape[1] else y.T @ y).cpu())
            rest.append(own.mean(0).square().sum() + mine.covariance.trace() + _centred(own).square().sum())
        return PreparedDistances(products=tuple(products), rest=torch.stack(rest).tolist())


@dataclass(frozen=True, kw_only=True)
class PreparedDistances:
    """Squared distances of which only the eigenvalues are missing. They are taken on the CPU, on any thread: at some
    hundreds of rows LAPACK is quicker than a GPU's solver, and leaves the GPU to others.

    products: for each subset a symmetric matrix with the eigenvalues of S1 S2. rest: |m1 - m2|^2 + tr(S1 + S2).
    """

    products: tuple[Tensor, ...]
    rest: list[float]

    def distances(self) -> list[float]:
        """One for each subset."""
        return [
            rest - 2 * float(_non_negative(torch.linalg.eigvalsh(product)).sqrt().sum())
            for product, rest in zip(self.products, self.rest, strict=True)
        ]


def _centred(samples: Tensor) -> Tensor:
    """samples [n, F] less their mean, over the root of n - 1: its square is their covariance."""
    return (samples - samples.mean(0)) / math.sqrt(len(samples) - 1)


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> float:
    """The squared Fréchet distance of two sets, by their statistics."""
    return FrechetReference(first).distance(second)


def _non_negative(values: Tensor) -> Tensor:
    """Eigenvalues of what must be positive semi-definite: rounding below zero becomes zero, anything more raises."""
    rounding = 10 * len(values) * torch.finfo(torch.float64).eps * float(values.abs().max())
    smallest = float(values.min())
    if not smallest >= -rounding:
        raise InvalidInput("covariance", smallest, f"eigenvalues lie above {-rounding:.3g}, the rounding error")
    return values.clamp(min=0)
