"""ELIT-Qwen-Image: Qwen-Image of diffusers with a latent interface in the stream of the picture (paper, section 4.4).

Text is short and stays whole: it runs through head, core and tail, and in the core it is beside the latents that are
kept, instead of the picture's tokens.

Letters: B batch, C channels, H x W sample size, P patch, N image tokens, T text tokens, G groups, J latents per group,
L level, K = G * L latents of the core, A heads, D width, E head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.backbones.dense.dense import square_fields
from elit_serve.nn.backbones.dense.elit import ElitDense, ElitDenseSpec, Layout, in_parts
from elit_serve.nn.backbones.dense.qwen_image import (
    PUBLISHED,
    SHORT_TEXT,
    QwenImage,
    QwenImageSpec,
    Streams,
    as_turns,
)
from elit_serve.nn.backbones.elastic import SplitSpec
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.kept import Kept, only_kept
from elit_serve.nn.layers import settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextTokens


@dataclass(frozen=True, kw_only=True)
class ElitQwenImageSpec(ElitDenseSpec, QwenImageSpec):
    """A Qwen-Image whose blocks are split by its interface."""

    kind: ClassVar[str] = "elit-qwen-image"
    plain_kind = QwenImageSpec

    @property
    def text_in_core(self) -> int:
        return self.max_tokens


class Told(NamedTuple):
    """What all blocks are told alike. vector: of time [B, D]. seen: which tokens of the text there are, to be added to
    scores [B, 1, 1, T]."""

    vector: Tensor
    seen: Tensor


class ElitQwenImage(ElitDense, QwenImage):
    """Qwen-Image with a spatial head, a core on a prefix of the latents, a spatial tail, and text through all."""

    spec: ElitQwenImageSpec

    def make_turns(self, rows: int, columns: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Phases of diffusers, which has them row by row, gathered group by group."""
        image, text = self.phases(rows, columns)
        number = positions[:, 0] * columns + positions[:, 1]
        return as_turns(image[number.long()]), as_turns(text)

    def tokens_among(self, made: Any) -> Tensor:
        _, tokens = made
        return super().tokens_among(tokens)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
        changes: Sequence[CoreChange] = (),
        own_levels: Tensor | None = None,
    ) -> Tensor:
        """Velocity at a level, or at several levels in one call, as `nn.backbones.elit.Elit.forward`, of prompts
        [B, T, D + 1]."""
        levels, layout, window = self.levels_of(level), self.layout(x.shape, x.device), self.spec.interface.window
        text, (head, _, tail) = TextTokens.of(condition), self.split_blocks()
        told = Told(self.embedded_noise_level(1 - t), self.mask_of(text))
        streams = Streams(
            self.img_in(patchify(x.to(self.dtype), patch=self.spec.patch, window=window)),  # [B, N, D]
            self.txt_in(self.txt_norm(text.states.to(self.dtype))),  # [B, T, D]
        )
        streams = run_blocks(head, streams, told, layout, layout.turns)
        count = len(levels)
        own = [None] * count if own_levels is None else list(own_levels.chunk(count))
        left: list[CoreChange | None] = [*changes] or [None] * count
        parts = zip(in_parts(streams, count), in_parts(told, count), levels, own, left, strict=True)
        written = [self.part_through_latents(*part, latent_order, layout) for part in parts]
        streams = Streams(*(torch.cat(each) for each in zip(*written, strict=True)))
        tokens, _ = run_blocks(tail, streams, told, layout, layout.turns)
        patches = self.proj_out(self.norm_out(tokens, told.vector))  # [B, N, C * P * P]
        height, width = x.shape[-2:]
        return -unpatchify(patches, patch=self.spec.patch, window=window, height=height, width=width)

    def part_through_latents(
        self,
        streams: Streams,
        told: Told,
        level: int,
        own_levels: Tensor | None,
        change: CoreChange | None,
        order: Tensor | None,
        layout: Layout,
    ) -> Streams:
        """Read, core on the first `level` latents of each group and on all words, Write: tokens [B, N, D]."""
        tokens, words = streams
        count = self.spec.max_tokens
        kept = Kept.of(own_levels, level, layout.num_groups, count)
        turns, (_, blocks, _) = layout.core_turns(level, order), self.split_blocks()

        def run_core(both: Tensor | Residual) -> Tensor:
            hidden = None if kept is None else kept.mask(self.dtype)[..., :-count]
            return run_blocks(blocks, Streams.of(settled(both), count), told, layout, turns, hidden).joined()

        def core(z: Tensor | Residual, _: Tensor) -> Tensor:
            nonlocal words
            both = Streams(settled(z), words).joined()
            z, words = Streams.of(through_core(only_kept(run_core, kept), both, change), count)
            return z

        written = self.through_latents(core, tokens, told.vector, level, layout=layout, order=order, kept=kept)
        return Streams(written, words)


def run_blocks(
    blocks: Iterable[nn.Module],
    streams: Streams,
    told: Told,
    layout: Layout,
    turns: Tensor,
    hidden: Tensor | None = None,
) -> Streams:
    """Both streams through blocks that attend as `AddedMask` says.

    turns: of the tokens [2, K, 1, E / 2]. hidden: what is added to their scores [B, 1, 1, K], None is nothing.
    """
    count = streams.tokens.shape[1]
    seen = F.pad(told.seen, (0, count)) if hidden is None else torch.cat([told.seen, hidden], dim=-1)
    rope = turns, layout.text_turns
    told_each = {"encoder_hidden_states_mask": seen, "temb": told.vector, "image_rotary_emb": rope}
    return Streams(*QwenImage.run(blocks, *streams, told_each))


def _preset(resolution: int, channels: int, conditions: Conditions) -> ElitQwenImageSpec:
    """As the paper splits it (section 4.4)."""
    sample = square_fields("elit-qwen-image", resolution, 256, channels, conditions)
    return ElitQwenImageSpec(**PUBLISHED, **sample, interface=SplitSpec(window=(16, 16), head=8, core=44, tail=8))


KIND = BackboneKind(
    spec=ElitQwenImageSpec,
    module=ElitQwenImage,
    tiny=ElitQwenImageSpec(
        channels=4,
        height=8,
        width=8,
        patch=2,
        dim=32,
        depth=4,
        num_heads=2,
        axes=(4, 6, 6),
        text_dim=16,
        max_tokens=7,
        interface=SplitSpec(window=(2, 4), head=1, core=2, tail=1),
    ),
    presets={"elit-qwen-image": _preset},
    is_published=True,
    conditions=SHORT_TEXT,
)
