"""Which latents run through a core whose samples keep different numbers of them: one pass for several levels.

The core is as long as the longest prefix. A sample's latents behind its own prefix are seen by no other, and leave the
core as they came; everything else is done for each latent alone. So each sample is as it would be in a pass at its own
level.

Letters: B samples of a part, G groups, L the level of the part, K tokens of its core (G * L latents, and text behind
them where there is some), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from elit_serve.nn.fused import Residual
from elit_serve.nn.layers import AnyBlock, settled


@dataclass(frozen=True)
class Kept:
    """of_group: which of the first L latents of a group each sample keeps, the same in every group. [B, L] bool

    text: how many tokens of a text run through the core behind its latents, which all samples keep.
    """

    of_group: Tensor
    num_groups: int
    text: int = 0

    @classmethod
    def of(cls, own_levels: Tensor | None, level: int, num_groups: int, text: int = 0) -> Kept | None:
        """Own levels [B] int64, none above the level of the part. None is a part all of whose samples keep all of it,
        as at level 1 they must."""
        if own_levels is None or level == 1:
            return None
        return cls(torch.arange(level, device=own_levels.device) < own_levels.unsqueeze(1), num_groups, text)

    def every(self, count: int) -> Kept:
        """Of what takes the place of so many latents that follow one another: kept where the first of these is."""
        return Kept(self.of_group[:, ::count], self.num_groups, self.text)

    def mask(self, dtype: torch.dtype) -> Tensor:
        """For attention over all latents, to be added to scores: 0 for those that are kept, else -inf. [B, 1, 1, K]"""
        return _mask(self._of_all(), dtype)

    def mask_in_groups(self, dtype: torch.dtype) -> Tensor:
        """The same for attention inside groups, which are folded into the batch. [B * G, 1, 1, L]"""
        return _mask(self.of_group.repeat_interleave(self.num_groups, dim=0), dtype)

    def chosen(self, kept: Tensor, others: Tensor | float) -> Tensor:
        """The latents that are kept from one tensor, the others from another. [B, K, D]"""
        return torch.where(self._of_all().unsqueeze(2), kept, others)

    def _of_all(self) -> Tensor:
        """Which tokens of the core each sample keeps. [B, K] bool"""
        return F.pad(self.of_group.repeat(1, self.num_groups), (0, self.text), value=True)


def _mask(is_seen: Tensor, dtype: torch.dtype) -> Tensor:
    """is_seen [B, K] bool -> [B, 1, 1, K]. As numbers, which attention would make of a boolean mask in each block."""
    return torch.zeros_like(is_seen, dtype=dtype).masked_fill_(~is_seen, -torch.inf)[:, None, None]


def masked(blocks: Iterable[AnyBlock], mask: Tensor | None) -> list[AnyBlock]:
    """Blocks whose attention sees the tokens of this mask alone."""
    return list(blocks) if mask is None else [partial(block, mask=mask) for block in blocks]


def mask_of(kept: Kept | None, latents: Tensor | Residual) -> Tensor | None:
    """The mask for a stream of latents, if there is one."""
    if kept is None:
        return None
    return kept.mask(latents.x.dtype if isinstance(latents, Residual) else latents.dtype)


def only_kept(
    core: Callable[[Tensor | Residual], Tensor | Residual], kept: Kept | None
) -> Callable[[Tensor | Residual], Tensor | Residual]:
    """A core that leaves latents [B, K, D] as they are which are not kept."""
    if kept is None:
        return core

    def around(stream: Tensor | Residual) -> Tensor:
        before = settled(stream)
        return kept.chosen(settled(core(before)), before)

    return around
