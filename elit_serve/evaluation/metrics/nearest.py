"""How close pictures come to the photographs that a model was trained on: a test for memorising.

Letters: n samples, m photographs, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """For each of n samples, the nearest photograph: Euclidean distances [n] and indices [n]."""

    distances: Tensor
    indices: Tensor

    @property
    def median_distance(self) -> float:
        return float(self.distances.median())


def nearest(samples: Tensor, photographs: Tensor, *, chunk: int = 1024) -> Nearest:
    """The nearest of photographs [m, F] to each of samples [n, F], in feature space, float64."""
    photographs = photographs.double()
    found = [torch.cdist(part, photographs).min(dim=1) for part in torch.split(samples.double(), chunk)]
    return Nearest(
        distances=torch.cat([part.values for part in found]), indices=torch.cat([part.indices for part in found])
    )
