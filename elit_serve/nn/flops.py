"""FLOPs of forward passes and training iterations (paper, appendix D, figure 10); each spec counts its own.

Two FLOPs per multiply-add; transformer blocks, Read and Write only, as in the paper's tables. Two conventions:

- `prefix`: Read and Write touch only the latents that are kept. This is what the code does.
- `all_latents`: Read and Write touch all J latents of a group and only the core drops the tail. This is
  what reproduces the paper's own multi-budget figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Protocol


@dataclass(frozen=True, kw_only=True)
class Flops:
    """A count in both conventions."""

    prefix: float
    all_latents: float

    def scaled(self, factor: float) -> Flops:
        return Flops(prefix=self.prefix * factor, all_latents=self.all_latents * factor)


class Counted(Protocol):
    """A spec that counts its own."""

    @property
    def levels(self) -> Sequence[int]: ...
    def flops(self, level: int) -> Flops: ...


def flops_multi_budget(spec: Counted) -> Flops:
    """The mean over levels drawn uniformly from 1..J, as multi-budget training draws them (section 3.4)."""
    counts = [spec.flops(level) for level in spec.levels]
    return Flops(prefix=fmean(c.prefix for c in counts), all_latents=fmean(c.all_latents for c in counts))


def flops_iteration(forward: Flops, batch: int) -> Flops:
    """One training iteration: forward and a backward pass of twice its cost, for `batch` samples."""
    return forward.scaled(3 * batch)


def block_flops(tokens: int, dim: int) -> float:
    """A transformer block over n tokens of width d: 24 n d^2 + 4 n^2 d."""
    return 24 * tokens * dim**2 + 4 * tokens**2 * dim
