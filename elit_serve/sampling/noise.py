"""Initial noise: one generator per sample, so a picture depends on its seed and not on its neighbours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def initial_noise(seeds: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal samples, drawn on the CPU from each seed alone. -> [len(seeds), *shape], float32"""
    generator = torch.Generator()
    return torch.stack([torch.randn(shape, generator=generator.manual_seed(seed)) for seed in seeds])
