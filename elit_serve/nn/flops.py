"""FLOPs of a forward pass, counted from the spec (paper, appendix D, figure 10).

Two FLOPs per multiply-add; transformer blocks, Read and Write only, as in the paper's tables. With n
tokens of width d a block costs 24 n d^2 + 4 n^2 d. Two conventions:

- `prefix`: Read and Write touch only the latents that are kept. This is what the code does.
- `all_latents`: Read and Write touch all J latents of a group and only the core drops the tail. This is
  what reproduces the paper's own multi-budget figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from elit_serve.nn.spec import BackboneSpec


@dataclass(frozen=True, kw_only=True)
class Flops:
    """A count in both conventions."""

    prefix: float
    all_latents: float

    def scaled(self, factor: float) -> Flops:
        return Flops(prefix=self.prefix * factor, all_latents=self.all_latents * factor)


def flops_forward(spec: BackboneSpec, level: int) -> Flops:
    """FLOPs of one forward pass of one sample at `level`."""
    if spec.interface is None:
        total = spec.depth * _block(spec.num_tokens, spec.dim)
        return Flops(prefix=total, all_latents=total)
    spatial = (spec.interface.head + spec.interface.tail) * _block(spec.num_tokens, spec.dim)
    core = spec.interface.core * _block(spec.num_groups * level, spec.dim)
    blocks = spatial + core
    return Flops(
        prefix=blocks + _read_and_write(spec, level),
        all_latents=blocks + _read_and_write(spec, spec.latents_per_group),
    )


def flops_multi_budget(spec: BackboneSpec) -> Flops:
    """The mean over levels drawn uniformly from 1..J, as multi-budget training draws them (section 3.4)."""
    counts = [flops_forward(spec, level) for level in range(1, spec.latents_per_group + 1)]
    return Flops(prefix=fmean(c.prefix for c in counts), all_latents=fmean(c.all_latents for c in counts))


def flops_iteration(forward: Flops, batch: int) -> Flops:
    """One training iteration: forward and a backward pass of twice its cost, for `batch` samples."""
    return forward.scaled(3 * batch)


def _block(tokens: int, dim: int) -> float:
    return 24 * tokens * dim**2 + 4 * tokens**2 * dim


def _read_and_write(spec: BackboneSpec, latents_per_group: int) -> float:
    dim, tokens, latents = spec.dim, spec.num_tokens, spec.num_groups * latents_per_group
    projections = 4 * dim**2 * (tokens + latents)
    attention = 4 * latents_per_group * tokens * dim
    read_mlp, write_mlp = 4 * dim**2 * latents, 4 * dim**2 * tokens
    return 2 * (projections + attention) + read_mlp + write_mlp
