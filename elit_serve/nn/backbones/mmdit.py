"""MM-DiT: text and picture are two streams with weights of their own, which meet in attention (Esser et al., 2024).

A block does to each stream what a DiT's does, but for attention, in which all tokens of both see each other. Behind the
last block nothing reads the text, so that block has no more of it than keys and values.

Letters: B batch, C channels, H x W sample size, N tokens of the picture, T places for tokens of text, D width, A heads,
E = D / A head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.plain import PlainSpec
from elit_serve.nn.backbones.texts import PRESET_TEXT, TINY_TEXT, TextSpec, TextTransformer
from elit_serve.nn.backbones.transformer import PRESETS, SIZES, Modulated, preset_fields, tiny_fields
from elit_serve.nn.flops import block_flops
from elit_serve.nn.fused import Residual, norm_rotate, settle_and_norm
from elit_serve.nn.layers import Block, HeadNorm, attend, settled
from elit_serve.nn.reuse import CoreChange, are_given, through_core


class Streams(NamedTuple):
    """The residual streams of a picture, or of its latents, [B, N, D] and of its text [B, T, D]."""

    image: Tensor | Residual
    text: Tensor | Residual

    @classmethod
    def of(cls, joined: Tensor, num_text: int) -> Streams:
        """Apart again: [B, N + T, D], each in memory of its own."""
        image, text = torch.split(joined, [joined.shape[1] - num_text, num_text], dim=1)
        return cls(image.contiguous(), text.contiguous())

    def joined(self) -> Tensor:
        """One behind the other. [B, N + T, D]"""
        return torch.cat([settled(self.image), settled(self.text)], dim=1)


class DoubleBlock(nn.Module):
    """A block of both streams; each half is a DiT block whose attention is over all tokens of both."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.image = Block(dim, num_heads)
        self.text = Block(dim, num_heads)

    def forward(
        self,
        streams: Streams,
        image_modulation: Tensor,
        text_modulation: Tensor,
        rope: Tensor,
        text_rope: Tensor,
        mask: Tensor,
    ) -> Streams:
        """Modulations [B, 6D] of each half, RoPE [2, N, 1, E/2] and [2, T, 1, E/2], mask [B, 1, 1, N + T]."""
        image, asking = self.image.before_attention(streams.image, image_modulation)  # [B, N, D] each
        text, text_asking = self.text.before_attention(streams.text, text_modulation)  # [B, T, D] each
        of_image = self.image.attention.project(asking, rope)  # [B, A, N, E] each
        of_text = self.text.attention.project(text_asking, text_rope)  # [B, A, T, E] each
        q, k, v = (torch.cat(both, dim=2) for both in zip(of_image, of_text, strict=True))  # [B, A, N + T, E] each
        attended = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # [B, N + T, D]
        for_image, for_text = torch.split(attended, [image.shape[1], text.shape[1]], dim=1)
        return Streams(
            self.image.behind_attention(image, self.image.attention.out(for_image), image_modulation),
            self.text.behind_attention(text, self.text.attention.out(for_text), text_modulation),
        )


class TextToRead(nn.Module):
    """Text that is read for the last time: keys and values under `modulation(c)` [B, 2D]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.kv = nn.Linear(dim, 2 * dim)
        self.k_norm = HeadNorm(dim // num_heads)
        self.modulation = nn.Linear(dim, 2 * dim)

    def forward(self, text: Tensor | Residual, modulation: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
        """A stream of text [B, T, D] -> its keys and values, [B, A, T, E] each."""
        shift, scale = modulation.chunk(2, dim=-1)
        _, normed = settle_and_norm(text, shift, scale)
        kv = self.kv(normed).view(*normed.shape[:2], 2, self.num_heads, -1)  # [B, T, 2, A, E]
        (k,) = norm_rotate(kv[:, :, :1], (self.k_norm.weight,), rope)
        return k.transpose(1, 2), kv[:, :, 1].transpose(1, 2)


class LastBlock(nn.Module):
    """As `DoubleBlock`, but it leaves the text as it is."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.image = Block(dim, num_heads)
        self.text = TextToRead(dim, num_heads)

    def forward(
        self,
        streams: Streams,
        image_modulation: Tensor,
        text_modulation: Tensor,
        rope: Tensor,
        text_rope: Tensor,
        mask: Tensor,
    ) -> Streams:
        image, asking = self.image.before_attention(streams.image, image_modulation)  # [B, N, D] each
        q, *of_image = self.image.attention.project(asking, rope)  # [B, A, N, E] each
        of_text = self.text(streams.text, text_modulation, text_rope)  # [B, A, T, E] each
        k, v = (torch.cat(both, dim=2) for both in zip(of_image, of_text, strict=True))  # [B, A, N + T, E] each
        attended = self.image.attention.out(attend(q, k, v, mask).transpose(1, 2).flatten(2))  # [B, N, D]
        return Streams(self.image.behind_attention(image, attended, image_modulation), streams.text)


def double_blocks(dim: int, num_heads: int, count: int) -> nn.ModuleList:
    """Blocks of both streams."""
    return nn.ModuleList(DoubleBlock(dim, num_heads) for _ in range(count))


def halves_of(blocks: Iterable[nn.Module]) -> Iterator[Modulated]:
    """What is modulated in each, in the order in which `run_double` takes the modulations."""
    for block in blocks:
        assert isinstance(block, DoubleBlock | LastBlock)
        yield from (block.image, block.text)


def run_double(
    blocks: Iterable[nn.Module],
    streams: Streams,
    modulations: Iterator[Tensor],
    rope: Tensor,
    text_rope: Tensor,
    mask: Tensor,
) -> Streams:
    """Both streams through blocks; each takes the next two modulations."""
    for block in blocks:
        streams = block(streams, next(modulations), next(modulations), rope, text_rope, mask)
    return streams


def seen_behind(tokens: int, text_mask: Tensor) -> Tensor:
    """The mask of text [B, 1, 1, T] behind so many tokens that are all seen. [B, 1, 1, N + T]"""
    return F.pad(text_mask, (tokens, 0))


def last_block_flops(tokens: int, text: int, dim: int) -> float:
    """A block over n tokens that read m of text: 24 n d^2 + 4 m d^2 + 4 n (n + m) d. Any other is `block_flops` of the
    n + m tokens."""
    return (24 * tokens + 4 * text) * dim**2 + 4 * tokens * (tokens + text) * dim


@dataclass(frozen=True, kw_only=True)
class MMDiTSpec(PlainSpec, TextSpec):
    """A plain MM-DiT, whose only level is 1."""

    kind: ClassVar[str] = "mmdit"

    def blocks_flops(self) -> float:
        whole = block_flops(self.num_tokens + self.max_tokens, self.dim)
        return (self.depth - 1) * whole + last_block_flops(self.num_tokens, self.max_tokens, self.dim)


class MMDiT(TextTransformer):
    """A plain MM-DiT; its only level is 1."""

    spec: MMDiTSpec

    def make_blocks(self) -> None:
        dim, heads = self.spec.dim, self.spec.num_heads
        self.blocks = double_blocks(dim, heads, self.spec.depth - 1).append(LastBlock(dim, heads))

    def compilable(self) -> list[nn.Module]:
        return list(self.blocks)

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
        """Velocity [B, C, H, W] at x [B, C, H, W], t [B], texts [B, T, text_dim + 1]. What `changes` skips is all
        blocks."""
        assert latent_order is None, f"{self.spec.kind} has no latents"
        assert level == 1, level
        assert own_levels is None, f"{self.spec.kind} has one level"
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        tokens, c = self.embed(x, t, condition)  # [B, N, D], [B, D]
        text, text_mask = self.embed_text(condition)  # [B, T, D], [B, 1, 1, T]
        mask = seen_behind(tokens.shape[1], text_mask)
        modulations = self.modulations([*halves_of(() if are_given(changes) else self.blocks), self.final], c)

        def core(tokens: Tensor | Residual) -> Tensor | Residual:
            streams = Streams(tokens, text)
            return run_double(self.blocks, streams, modulations, layout.token_rope, layout.text_rope, mask).image

        stream = through_core(core, tokens, changes[0]) if changes else core(tokens)
        return self.unembed(stream, next(modulations), layout)  # [B, C, H, W]


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> MMDiTSpec:
    fields, _ = preset_fields(f"mmdit-{size}/{patch}", SIZES[size], patch, resolution, channels, conditions)
    return MMDiTSpec(**fields)


KIND = BackboneKind(
    spec=MMDiTSpec,
    module=MMDiT,
    tiny=MMDiTSpec(**tiny_fields(2, TINY_TEXT)),
    presets={f"mmdit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
    conditions=PRESET_TEXT,
)
