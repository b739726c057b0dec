"""ELIT-PRX: PRX of diffusers with a latent interface; text is the same in all blocks.

Letters: B batch, C channels, H x W sample size, P patch, N image tokens, T text tokens, G groups, J latents per group,
L level, K = G * L tokens of the core, D width, E head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.backbones.dense.dense import square_fields, turned
from elit_serve.nn.backbones.dense.elit import ElitDense, ElitDenseSpec, Layout, in_parts
from elit_serve.nn.backbones.dense.prx import LONG_TEXT, PRX, PUBLISHED, PRXSpec
from elit_serve.nn.backbones.elastic import SplitSpec
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.kept import Kept, only_kept
from elit_serve.nn.layers import attend, settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextTokens


@dataclass(frozen=True, kw_only=True)
class ElitPRXSpec(ElitDenseSpec, PRXSpec):
    """A PRX whose blocks are split by its interface."""

    kind: ClassVar[str] = "elit-prx"
    plain_kind = PRXSpec


class Told(NamedTuple):
    """What all blocks are told alike. vector: of time [B, D]. words: of the text [B, T, D]. seen: which of these there
    are, to be added to scores [B, 1, 1, T]."""

    vector: Tensor
    words: Tensor
    seen: Tensor


class ElitPRX(ElitDense, PRX):
    """PRX with a spatial head, a core on a prefix of the latents, a spatial tail, and text beside all of them."""

    spec: ElitPRXSpec

    def __init__(self, spec: ElitPRXSpec) -> None:
        super().__init__(spec)
        for block in self.blocks:
            attention: Any = block.attention
            attention.set_processor(AddedMask())

    def make_turns(self, rows: int, columns: int, positions: Tensor) -> tuple[Tensor, None]:  # noqa: ARG002
        return self.pe_embedder(positions.unsqueeze(0)), None

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
        head, _, tail = self.split_blocks()
        told = self.told_of(x, 1 - t, TextTokens.of(condition))
        tokens = self.img_in(patchify(x.to(self.dtype), patch=self.spec.patch, window=window))  # [B, N, D]
        tokens = run_blocks(head, tokens, told, layout.turns, told.seen)
        count = len(levels)
        own = [None] * count if own_levels is None else list(own_levels.chunk(count))
        left: list[CoreChange | None] = [*changes] or [None] * count
        parts = zip(tokens.chunk(count), in_parts(told, count), levels, own, left, strict=True)
        tokens = torch.cat([self.part_through_latents(*part, latent_order, layout) for part in parts])
        tokens = run_blocks(tail, tokens, told, layout.turns, told.seen)
        patches = self.final_layer(tokens, told.vector)  # [B, N, C * P * P]
        height, width = x.shape[-2:]
        return -unpatchify(patches, patch=self.spec.patch, window=window, height=height, width=width)

    def told_of(self, x: Tensor, sigma: Tensor, text: TextTokens) -> Told:
        """Of samples [B, C, H, W] at sigma [B]."""
        told = self.told(x, sigma, text)
        return Told(told["temb"], told["encoder_hidden_states"], self.mask_of(text))

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
            seen = told.seen if kept is None else torch.cat([told.seen, kept.mask(self.dtype)], dim=-1)
            run = partial(run_blocks, blocks, told=told, turns=turns, seen=seen)
            return through_core(only_kept(lambda z: run(settled(z)), kept), z, change)

        return self.through_latents(core, tokens, told.vector, level, layout=layout, order=order, kept=kept)


def run_blocks(blocks: Iterable[nn.Module], tokens: Tensor, told: Told, turns: Tensor, seen: Tensor) -> Tensor:
    """Tokens [B, K, D] through blocks that attend as `AddedMask` says. -> [B, K, D]

    turns: of these tokens [1, 1, K, E / 2, 2, 2]. seen: of text tokens, and behind them of these if some are hidden,
    [B, 1, 1, T] or [B, 1, 1, T + K].
    """
    seen = F.pad(seen, (0, told.words.shape[1] + tokens.shape[1] - seen.shape[-1]))
    told_each = {"temb": told.vector, "encoder_hidden_states": told.words, "attention_mask": seen}
    return PRX.run(blocks, tokens, told_each, turns)


class AddedMask:
    """How blocks of diffusers' PRX attend where image tokens may be hidden, too; by itself it can hide text only."""

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        *,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor,
        image_rotary_emb: Tensor,
    ) -> Tensor:
        """attention_mask [B, 1, 1, T + K] is added to scores; see `attended`."""
        return attended(attention, hidden_states, encoder_hidden_states, image_rotary_emb, attention_mask)


def attended(attention: Any, tokens: Tensor, words: Tensor, turns: Tensor, seen: Tensor) -> Tensor:
    """Tokens [B, K, D] attend to words [B, T, D] and to each other, by weights of PRX. -> [B, K, D]"""
    heads, size = attention.heads, attention.head_dim
    q, k, v = attention.img_qkv_proj(tokens).unflatten(-1, (3, heads, size)).permute(2, 0, 3, 1, 4)  # [B, H, K, E]
    words_k, words_v = attention.txt_kv_proj(words).unflatten(-1, (2, heads, size)).permute(2, 0, 3, 1, 4)
    q, k = turned(attention.norm_q(q), turns), turned(attention.norm_k(k), turns)
    every_k = torch.cat([attention.norm_added_k(words_k), k], dim=2)  # [B, H, T + K, E]
    made = attend(q, every_k, torch.cat([words_v, v], dim=2), seen)
    return attention.to_out[0](made.transpose(1, 2).flatten(2))


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
