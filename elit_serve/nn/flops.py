"""FLOPs of forward passes and training iterations (paper, appendix D, figure 10); each spec counts its own.

Two FLOPs per multiply-add; transformer blocks, Read and Write only, as in the paper's tables. A model does one of two
things, and both are counted:

- `prefix`: Read and Write touch only the latents that are kept, as the paper's text has it.
- `all_latents`: Read and Write touch all J latents of a group and only the core drops the tail. This is
  what reproduces the paper's own multi-budget figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Protocol

from elit_serve.plans.step_kind import StepKind


@dataclass(frozen=True, kw_only=True)
class Flops:
    """A count of both. reads_all: whether this model's Read and Write touch all latents."""

    prefix: float
    all_latents: float
    reads_all: bool = False

    @property
    def executed(self) -> float:
        """What this model does."""
        return self.all_latents if self.reads_all else self.prefix

    def scaled(self, factor: float) -> Flops:
        return replace(self, prefix=self.prefix * factor, all_latents=self.all_latents * factor)


class Counted(Protocol):
    """A spec that counts its own."""

    @property
    def levels(self) -> Sequence[int]: ...
    def flops(self, level: int) -> Flops: ...
    def core_flops(self, level: int) -> float: ...


def step_flops(spec: Counted, kind: StepKind) -> float:
    """What one step of one sample computes, both passes, without cores that it skips; `spec` is that of its shape."""
    passes = [kind.level] if kind.weak_level is None else [kind.level, kind.weak_level]
    return sum(spec.flops(level).executed - (spec.core_flops(level) if kind.is_skipped else 0.0) for level in passes)


def flops_multi_budget(spec: Counted) -> Flops:
    """The mean over levels drawn uniformly from 1..J, as multi-budget training draws them (section 3.4)."""
    counts = [spec.flops(level) for level in spec.levels]
    prefix, all_latents = fmean(c.prefix for c in counts), fmean(c.all_latents for c in counts)
    return replace(counts[0], prefix=prefix, all_latents=all_latents)


def flops_iteration(forward: Flops, batch: int) -> Flops:
    """One training iteration: forward and a backward pass of twice its cost, for `batch` samples."""
    return forward.scaled(3 * batch)


def block_flops(tokens: int, dim: int) -> float:
    """A transformer block over n tokens of width d: 24 n d^2 + 4 n^2 d."""
    return 24 * tokens * dim**2 + 4 * tokens**2 * dim


def read_and_write_flops(groups: int, window: int, latents_per_group: int, dim: int) -> float:
    """Read and Write together, between `window` tokens and `latents_per_group` latents in each of `groups`."""
    tokens, latents = groups * window, groups * latents_per_group
    projections = 4 * dim**2 * (tokens + latents)
    attention = 4 * latents_per_group * tokens * dim
    read_mlp, write_mlp = 4 * dim**2 * latents, 4 * dim**2 * tokens
    return 2 * (projections + attention) + read_mlp + write_mlp
