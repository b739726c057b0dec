"""ELIT-PRX: PRX of diffusers with a latent interface; text is the same in all blocks.

Letters: B batch, C channels, H x W sample size, P patch, N image tokens, T text tokens, G groups, J latents per group,
L level, K = G * L tokens of the core, D width, E head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from elit_serve.nn.backbones.dense.dense import square_fields
from elit_serve.nn.backbones.dense.elit import ElitDense, ElitDenseSpec, Layout, in_parts
from elit_serve.nn.backbones.dense.prx import LONG_TEXT, PRX, PUBLISHED, PRXSpec, Told, run_blocks
from elit_serve.nn.backbones.elastic import SplitSpec
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.kept import Kept, only_kept
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextInput, opened


@dataclass(frozen=True, kw_only=True)
class ElitPRXSpec(ElitDenseSpec, PRXSpec):
    """A PRX whose blocks are split by its interface."""

    kind: ClassVar[str] = "elit-prx"
    plain_kind = PRXSpec


class ElitPRX(ElitDense, PRX):
    """PRX with a spatial head, a core on a prefix of the latents, a spatial tail, and text beside all of them."""

    spec: ElitPRXSpec

    def make_turns(self, rows: int, columns: int, positions: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        return self.rope_of(positions), None

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: TextInput,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
        changes: Sequence[CoreChange] = (),
        own_levels: Tensor | None = None,
    ) -> Tensor:
        """Velocity at a level, or at several levels in one call, as `nn.backbones.elit.Elit.forward`, of prompts
        [B, T, D + 1] or read once."""
        levels, layout, window = self.levels_of(level), self.layout(x.shape, x.device), self.spec.interface.window
        head, _, tail = self.split_blocks()
        told = self.told(x, 1 - t, opened(condition))
        tokens = self.img_in(patchify(x.to(self.dtype), patch=self.spec.patch, window=window))  # [B, N, D]
        tokens = run_blocks(head, tokens, told, layout.turns)
        count = len(levels)
        own = [None] * count if own_levels is None else list(own_levels.chunk(count))
        left: list[CoreChange | None] = [*changes] or [None] * count
        parts = zip(tokens.chunk(count), in_parts(told, count), levels, own, left, strict=True)
        tokens = torch.cat([self.part_through_latents(*part, latent_order, layout) for part in parts])
        tokens = run_blocks(tail, tokens, told, layout.turns)
        patches = self.final_layer(tokens, told.vector)  # [B, N, C * P * P]
        height, width = x.shape[-2:]
        return -unpatchify(patches, patch=self.spec.patch, window=window, height=height, width=width)

    def part_through_latents(
        self,
        tokens: Tensor,
        told: Told,
        level: int,
        own_levels: Tensor | None,
        change: CoreChange | None,
        order: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        """Read, core on the first `level` latents of each group, Write: tokens [B, N, D] -> [B, N, D]."""
        kept = Kept.of(own_levels, level, layout.num_groups)
        turns, (_, blocks, _) = layout.core_turns(level, order), self.split_blocks()

        def core(z: Tensor | Residual, _: Tensor) -> Tensor:
            seen = None if kept is None else kept.mask(self.dtype)
            run = partial(run_blocks, blocks, told=told, rope=turns, seen_tokens=seen)
            return through_core(only_kept(run, kept), z, change)

        return self.through_latents(core, tokens, told.vector, level, layout=layout, order=order, kept=kept)


def _preset(resolution: int, channels: int, conditions: Conditions) -> ElitPRXSpec:
    """As the recipe prx-512 splits it."""
    sample = square_fields("elit-prx", resolution, 128, channels, conditions)
    return ElitPRXSpec(**PUBLISHED, **sample, interface=SplitSpec(window=(8, 8), head=2, core=12, tail=2))


KIND = BackboneKind(
    spec=ElitPRXSpec,
    module=ElitPRX,
    tiny=ElitPRXSpec(
        channels=4,
        height=8,
        width=8,
        patch=2,
        dim=32,
        depth=4,
        num_heads=2,
        axes=(8, 8),
        mlp_ratio=1.5,
        text_dim=16,
        max_tokens=7,
        interface=SplitSpec(window=(2, 4), head=1, core=2, tail=1),
    ),
    presets={"elit-prx": _preset},
    is_published=True,
    conditions=LONG_TEXT,
)
