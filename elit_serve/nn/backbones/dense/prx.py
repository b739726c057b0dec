"""PRX of Photoroom: image tokens attend to image and text tokens, and text is the same in all blocks.

Letters: B batch, C channels, H x W sample size, N image tokens, T text tokens (words), D width, H heads, E head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.dense.dense import ONE, Dense, DenseSpec, square_fields
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.texts import PRESET_TEXT
from elit_serve.nn.fields import flag, number, pair, whole
from elit_serve.nn.fused import EPS, Residual, attend_with_words, gelu_times, norm_rotate, settle_and_norm
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.layers import settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import ReadText, TextTokens

PUBLISHED: dict[str, Any] = {"patch": 2, "dim": 1792, "depth": 16, "num_heads": 28}
LONG_TEXT = {**PRESET_TEXT, "max_tokens": 256}  # of presets: as many places as its pipeline fills


@dataclass(frozen=True, kw_only=True)
class PRXSpec(DenseSpec):
    """axes: how much of a head its RoPE turns by row and by column. bottleneck: the width between two layers that embed
    patches, None for one layer. knows_size: whether it is told the size of the sample."""

    kind: ClassVar[str] = "prx"
    their_class: ClassVar[str] = "PRXTransformer2DModel"
    their_names: ClassVar[dict[str, str]] = {
        "channels": "in_channels", "patch": "patch_size", "text_dim": "context_in_dim", "dim": "hidden_size",
        "mlp_ratio": "mlp_ratio", "num_heads": "num_heads", "depth": "depth", "axes": "axes_dim", "theta": "theta",
        "time_factor": "time_factor", "time_max_period": "time_max_period", "bottleneck": "bottleneck_size",
        "knows_size": "resolution_embeds",
    }  # fmt: skip

    axes: tuple[int, int] = pair(2, 1024, (32, 32))
    mlp_ratio: float = number(0.1, 64, 3.5)
    theta: int = whole(2, 10**9, 10_000)
    time_factor: float = number(1e-3, 1e6, 1000.0)
    time_max_period: int = whole(2, 10**9, 10_000)
    bottleneck: int | None = whole(1, 65536, None)
    knows_size: bool = flag(False)

    def check(self) -> None:
        if self.dim % self.num_heads or sum(self.axes) != self.dim // self.num_heads or self.axes[0] % 2:
            raise InvalidInput(
                "axes", self.axes, f"two even numbers, together dim / num_heads: {self.dim} / {self.num_heads}"
            )
        super().check()

    @property
    def mlp_dim(self) -> int:
        """The hidden width of MLPs."""
        return int(self.dim * self.mlp_ratio)

    def blocks_flops(self, tokens: int) -> float:
        """Queries, keys, values and output of image tokens, keys and values of text (which training computes at every
        step, and a server once for a picture), attention, and gated MLPs."""
        projections = 8 * tokens * self.dim**2 + 4 * self.max_tokens * self.dim**2
        attention = 4 * tokens * (tokens + self.max_tokens) * self.dim
        return self.depth * (projections + attention + 6 * tokens * self.dim * self.mlp_dim)


class Told(NamedTuple):
    """What all blocks are told alike. vector: of time [B, D]. words: of the text [B, T, D], or what all L blocks have
    read of it [B, L, 2, H, T, E], see `ReadText`. seen: which words there are, to be added to scores [B, 1, 1, T]."""

    vector: Tensor
    words: Tensor
    seen: Tensor


class PRXBlock(nn.Module):
    """A block of diffusers' PRX, with its children under their names, by the passes of `fused`. index: which one."""

    attention: Any
    gate_proj: nn.Module
    up_proj: nn.Module
    down_proj: nn.Module
    modulation: nn.Module

    def __init__(self, theirs: nn.Module, index: int) -> None:
        super().__init__()
        self.index = index
        for name, child in theirs.named_children():
            self.add_module(name, child)

    def forward(
        self, stream: Tensor | Residual, told: Told, rope: Tensor, seen_tokens: Tensor | None = None
    ) -> Residual:
        """A stream of image tokens [B, N, D] under RoPE tables [2, N, 1, E / 2]. seen_tokens: which of them are seen
        where some are not, to be added to scores [B, 1, 1, N]."""
        modulation = (part.squeeze(1) for parts in self.modulation(told.vector) for part in parts)
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation  # [B, D] each
        x, normed = settle_and_norm(stream, shift1, scale1)
        attended = self.attended(normed, told, rope, seen_tokens)
        x, normed = settle_and_norm(Residual(x, attended, gate1), shift2, scale2)
        return Residual(x, self.down_proj(gelu_times(self.gate_proj(normed), self.up_proj(normed))), gate2)

    def attended(self, tokens: Tensor, told: Told, rope: Tensor, seen_tokens: Tensor | None) -> Tensor:
        """Tokens [B, N, D] attend to words and to each other. -> [B, N, D]"""
        theirs = self.attention
        heads, size = theirs.heads, theirs.head_dim
        qkv = theirs.img_qkv_proj(tokens).unflatten(-1, (3, heads, size))  # [B, N, 3, H, E]
        weights = theirs.norm_q.weight, theirs.norm_k.weight
        q, k = (part.transpose(1, 2) for part in norm_rotate(qkv[:, :, :2], weights, rope, pairs=True))  # [B, H, N, E]
        v = qkv[:, :, 2].transpose(1, 2)
        is_read = told.words.dim() == 6
        words_k, words_v = told.words[:, self.index].unbind(1) if is_read else self.read(told.words)
        made = attend_with_words(q, k, v, words_k, words_v, told.seen, seen_tokens)
        return theirs.to_out[0](made.transpose(1, 2).flatten(2))

    def read(self, words: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, T, E] of words [B, T, D], which no time changes."""
        theirs = self.attention
        of_words = theirs.txt_kv_proj(words).unflatten(-1, (2, theirs.heads, theirs.head_dim))  # [B, T, 2, H, E]
        k, v = of_words.permute(2, 0, 3, 1, 4)
        return F.rms_norm(k, (theirs.head_dim,), theirs.norm_added_k.weight.to(k.dtype), EPS), v


class PRX(Dense):
    """PRX of diffusers; its only level is 1."""

    spec: PRXSpec
    blocks: nn.ModuleList
    pe_embedder: nn.Module
    img_in: nn.Module
    time_in: nn.Module
    txt_in: nn.Module
    resolution_embedder: nn.Module
    final_layer: nn.Module

    def __init__(self, spec: PRXSpec) -> None:
        super().__init__(spec)
        self.blocks = nn.ModuleList([PRXBlock(block, index) for index, block in enumerate(self.blocks)])

    def every_block(self) -> Iterable[nn.Module]:
        return self.blocks

    def unfused(self) -> list[nn.Module]:
        return []

    def make_layout(self, rows: int, columns: int, device: torch.device) -> Any:
        """RoPE tables of all tokens, [2, N, 1, E / 2]."""
        places = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        return self.rope_of(places)

    def rope_of(self, positions: Tensor) -> Tensor:
        """RoPE tables of tokens at positions [N, 2]: cosines and sines [2, N, 1, E / 2]."""
        turns = self.pe_embedder(positions.float().unsqueeze(0))[0, 0]  # [N, E / 2, 2, 2], (cos, -sin), (sin, cos)
        return turns[..., 0].movedim(-1, 0).unsqueeze(2).contiguous()

    def time_embedding(self, t: Tensor) -> Tensor:
        return self.embedded_noise_level(1 - t)

    def embedded_noise_level(self, sigma: Tensor) -> Tensor:
        """sigma [B] -> [B, D]"""
        from diffusers.models.embeddings import get_timestep_embedding

        waves = get_timestep_embedding(
            sigma.float(),
            256,
            flip_sin_to_cos=True,
            downscale_freq_shift=0.0,
            scale=self.spec.time_factor,
            max_period=self.spec.time_max_period,
        )
        return self.time_in(waves.to(self.dtype))

    def read_once(self, condition: Tensor) -> ReadText:
        """Keys and values of all blocks for prompts [B, T, D + 1]: a twelfth of a step's time, with 256 tokens."""
        text = TextTokens.of(condition)
        words = self.txt_in(text.states.to(self.dtype))
        blocks: Iterable[Any] = self.blocks
        read = [torch.stack(block.read(words), dim=1) for block in blocks]  # [B, 2, H, T, E] each
        return ReadText(torch.stack(read, dim=1), text.mask)

    def theirs(self, x: Tensor, sigma: Tensor, text: TextTokens | ReadText, change: CoreChange | None) -> Tensor:
        height, width = x.shape[-2:]
        told = self.told(x, sigma, text)
        tokens = self.img_in(patchify(x, patch=self.spec.patch, window=ONE))  # [B, N, D]
        rope = self.layout(x.shape, x.device)
        tokens = through_core(lambda stream: run_blocks(self.blocks, stream, told, rope), tokens, change)
        patches = self.final_layer(tokens, told.vector)  # [B, N, C * P * P]
        return unpatchify(patches, patch=self.spec.patch, window=ONE, height=height, width=width)

    def told(self, x: Tensor, sigma: Tensor, text: TextTokens | ReadText) -> Told:
        """What blocks are told of samples [B, C, H, W] at sigma [B]."""
        vector = self.embedded_noise_level(sigma)  # [B, D]
        if self.spec.knows_size:
            height, width = (torch.full((len(x),), float(side), device=x.device) for side in x.shape[-2:])
            vector = vector + self.resolution_embedder(height, width, dtype=vector.dtype)
        words = text.words if isinstance(text, ReadText) else self.txt_in(text.states.to(self.dtype))
        return Told(vector, words, self.mask_of(text))


def run_blocks(
    blocks: Iterable[nn.Module],
    stream: Tensor | Residual,
    told: Told,
    rope: Tensor,
    seen_tokens: Tensor | None = None,
) -> Tensor:
    """A stream of image tokens through blocks, see `PRXBlock`. -> [B, N, D]"""
    for block in blocks:
        stream = block(stream, told, rope, seen_tokens)
    return settled(stream)


def _preset(resolution: int, channels: int, conditions: Conditions) -> PRXSpec:
    return PRXSpec(**PUBLISHED, **square_fields("prx", resolution, 16, channels, conditions))


KIND = BackboneKind(
    spec=PRXSpec,
    module=PRX,
    tiny=PRXSpec(
        channels=4,
        height=8,
        width=8,
        patch=2,
        dim=32,
        depth=3,
        num_heads=2,
        axes=(8, 8),
        mlp_ratio=1.5,
        text_dim=12,
        max_tokens=7,
    ),
    presets={"prx": _preset},
    is_published=True,
    conditions=LONG_TEXT,
)
