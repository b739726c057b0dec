"""SiT: a DiT whose positions are fixed sines and cosines in its tokens, as the published checkpoints have it.

It has neither RoPE nor QK normalisation, and knows the noise level 1 - t itself, not a thousand times t. In the
published code time runs from data to noise and the output is noise - data; here it is as everywhere in elit-serve, so
imported weights have their last layer's sign turned. ELIT-SiT shares what is here but the module itself.

Letters: B batch, C channels, H x W sample size, N spatial tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec, ClassTransformer
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.plain import Plain, PlainSpec
from elit_serve.nn.backbones.transformer import PRESETS, SIZES, Layout, preset_fields, tiny_fields
from elit_serve.nn.fields import one_of
from elit_serve.nn.interface import token_positions
from elit_serve.nn.layers import Block, TimestepEmbedder

CHANNELS = 4  # of the autoencoder that the published ones were trained behind, that of Stable Diffusion


def sine_positions(rows: Tensor, columns: Tensor, dim: int) -> Tensor:
    """2D sine-cosine positions of tokens at rows [N] and columns [N] (as DiT): float32 [N, D].

    Sines then cosines of the column fill the first half, those of the row the second.
    """
    steps = torch.arange(dim // 4, dtype=torch.float64, device=rows.device)
    freqs = 10_000.0 ** (-steps / (dim // 4))
    angles = [place.double().unsqueeze(1) * freqs for place in (columns, rows)]  # [N, D / 4] each
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


class NoiseEmbedder(TimestepEmbedder):
    """t in [0, 1] -> [B, D]: sinusoids of the noise level 1 - t, then a two-layer MLP."""

    def phase(self, t: Tensor) -> Tensor:
        return 1 - t.float()


@dataclass(frozen=True, kw_only=True)
class SineLayout(Layout):
    """raster: the number of each token, counted row by row over the whole grid [N]. sines: its position [N, D]."""

    raster: Tensor
    sines: Tensor


class SineTransformer(ClassTransformer):
    """What SiT and ELIT-SiT share: their tokens carry fixed positions, and their blocks are plain."""

    def make_time_embed(self) -> TimestepEmbedder:
        return NoiseEmbedder(self.spec.dim)

    def new_blocks(self, count: int) -> nn.ModuleList:
        return nn.ModuleList(Block(self.spec.dim, self.spec.num_heads, plain=True) for _ in range(count))

    def layout(self, height: int, width: int, device: torch.device) -> SineLayout:
        layout = super().layout(height, width, device)
        assert isinstance(layout, SineLayout)
        return layout

    def _make_layout(self, height: int, width: int, device: torch.device) -> SineLayout:
        layout = super()._make_layout(height, width, device)
        rows, columns = token_positions(layout.rows, layout.columns, self.window, device).unbind(1)
        return SineLayout(
            **vars(layout),
            raster=(rows * layout.columns + columns).long(),
            sines=sine_positions(rows, columns, self.spec.dim),
        )

    def embed(self, x: Tensor, t: Tensor, condition: Tensor, also: Tensor | None = None) -> tuple[Tensor, Tensor]:
        tokens, c = super().embed(x, t, condition, also)
        sines = self.layout(x.shape[2], x.shape[3], x.device).sines
        return tokens + sines.to(tokens.dtype), c


@dataclass(frozen=True, kw_only=True)
class SiTSpec(PlainSpec, ClassSpec):
    """A plain SiT, whose only level is 1: each token stands alone."""

    kind: ClassVar[str] = "sit"
    positions: str = one_of(("sine",), "sine")


class SiT(SineTransformer, Plain):
    """A plain class-conditional SiT; its only level is 1."""

    spec: SiTSpec


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> SiTSpec:
    fields, _ = preset_fields(f"sit-{size}/{patch}", SIZES[size], patch, resolution, channels, conditions)
    return SiTSpec(**fields)


KIND = BackboneKind(
    spec=SiTSpec,
    module=SiT,
    tiny=SiTSpec(**tiny_fields(2, TINY_CLASSES)),
    presets={f"sit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
    channels=CHANNELS,
)
