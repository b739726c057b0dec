"""Numbers beside samples of any shape."""

from __future__ import annotations

from torch import Tensor


def expand_like(values: Tensor, like: Tensor) -> Tensor:
    """One value for each sample, to be multiplied with them: values [B], like [B, ...] -> [B, 1, ...]."""
    return values.view(-1, *(1,) * (like.dim() - 1))
