"""FLUX.2 as klein has it: blocks with a stream of image tokens and one of text, and behind them blocks of both in one.

Letters: B batch, C channels, H x W sample size, N image tokens, T text tokens, D width, E head size.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.dense.dense import ONE, Dense, DenseSpec
from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.backbones.texts import PRESET_TEXT
from elit_serve.nn.fields import number, several, whole
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.layers import settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextTokens

TIME_FACTOR = 1000  # diffusers tells a noise level as one of so many times of training


@dataclass(frozen=True, kw_only=True)
class Flux2Spec(DenseSpec):
    """depth: blocks of two streams; single_depth: those of one, behind them. axes: how much of a head its RoPE turns by
    frame, row, column and place in the text. time_channels: waves that a noise level is told by."""

    kind: ClassVar[str] = "flux2"
    their_class: ClassVar[str] = "Flux2Transformer2DModel"
    their_names: ClassVar[dict[str, str]] = {
        "channels": "in_channels", "patch": "patch_size", "text_dim": "joint_attention_dim", "depth": "num_layers",
        "single_depth": "num_single_layers", "num_heads": "num_attention_heads", "mlp_ratio": "mlp_ratio",
        "axes": "axes_dims_rope", "theta": "rope_theta", "time_channels": "timestep_guidance_channels", "eps": "eps",
    }  # fmt: skip
    their_constants: ClassVar[dict[str, object]] = {"guidance_embeds": False}  # it is told no scale of guidance
    masks_text: ClassVar[bool] = False  # as in diffusers; attention without a mask also has faster kernels on a GPU

    single_depth: int = whole(1, 512)
    axes: tuple[int, ...] = several(4, 2, 1024, (32, 32, 32, 32))
    mlp_ratio: float = number(0.1, 64, 3.0)
    theta: int = whole(2, 10**9, 2000)
    time_channels: int = whole(2, 65536, 256)
    eps: float = number(1e-12, 0.1, 1e-6)

    @classmethod
    def completed(cls, table: dict[str, object]) -> dict[str, object]:
        """Its width is that of a head times their number, and it answers in the channels of its samples."""
        rest = dict(table)
        if rest.get("out_channels") == rest.get("channels"):
            rest.pop("out_channels", None)
        head, heads = rest.pop("attention_head_dim", None), rest.get("num_heads")
        if isinstance(head, int) and isinstance(heads, int):
            rest["dim"] = head * heads
        return rest

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"attention_head_dim": self.dim // self.num_heads, "guidance_embeds": False}

    def check(self) -> None:
        if self.patch != 1:
            raise InvalidInput("patch", self.patch, "1: its autoencoder has put patches into channels already")
        if self.dim % self.num_heads or sum(self.axes) != self.dim // self.num_heads or any(a % 2 for a in self.axes):
            head = f"{self.dim} / {self.num_heads}"
            raise InvalidInput("axes", self.axes, f"four even numbers, together the size of a head: {head}")
        super().check()

    def blocks_flops(self, tokens: int) -> float:
        """Projections of both streams, gated MLPs, and attention over all tokens: the same in both kinds of block."""
        all_tokens = tokens + self.max_tokens
        of_token = 8 * self.dim**2 + 6 * self.dim * int(self.dim * self.mlp_ratio)
        return (self.depth + self.single_depth) * (all_tokens * of_token + 4 * all_tokens**2 * self.dim)


class Flux2(Dense):
    """FLUX.2 of diffusers without embedded guidance; its only level is 1."""

    spec: Flux2Spec
    transformer_blocks: nn.ModuleList
    single_transformer_blocks: nn.ModuleList
    pos_embed: nn.Module
    time_guidance_embed: Any
    double_stream_modulation_img: nn.Module
    double_stream_modulation_txt: nn.Module
    single_stream_modulation: nn.Module
    x_embedder: nn.Module
    context_embedder: nn.Module
    norm_out: nn.Module
    proj_out: nn.Module

    def every_block(self) -> Iterable[nn.Module]:
        return [*self.transformer_blocks, *self.single_transformer_blocks]

    def make_layout(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine by which the tokens of text and, behind them, of the image are turned: each [T + N, E].

        Places are (frame, row, column, place in the text).
        """
        words = torch.arange(self.spec.max_tokens, device=device)
        grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
        places = torch.zeros(len(words) + len(grid), 4, device=device, dtype=torch.long)
        places[: len(words), 3] = words
        places[len(words) :, 1:3] = grid
        cosine, sine = self.pos_embed(places)
        return cosine, sine

    def time_embedding(self, t: Tensor) -> Tensor:
        return self.embedded_noise_level(1 - t)

    def embedded_noise_level(self, sigma: Tensor) -> Tensor:
        """sigma [B] -> [B, D]

        Its waves are computed in float32 whatever the model computes in: of 1000 times bfloat16 knows one in four.
        """
        waves = self.time_guidance_embed.time_proj(sigma.float() * TIME_FACTOR)
        embedded: Tensor = self.time_guidance_embed.timestep_embedder(waves.to(self.dtype))
        return embedded

    def theirs(self, x: Tensor, sigma: Tensor, text: TextTokens, change: CoreChange | None) -> Tensor:
        height, width = x.shape[-2:]
        tokens = self.x_embedder(patchify(x, patch=1, window=ONE))  # [B, N, D]
        words = self.context_embedder(text.states.to(self.dtype))  # [B, T, D]
        vector = self.embedded_noise_level(sigma)  # [B, D]
        turns = self.layout(x.shape, x.device)

        def core(stream: Tensor | Residual) -> Tensor:
            return self._core(settled(stream), words, vector, turns)

        tokens = through_core(core, tokens, change)
        patches = self.proj_out(self.norm_out(tokens, vector))  # [B, N, C]
        return unpatchify(patches, patch=1, window=ONE, height=height, width=width)

    def _core(self, tokens: Tensor, words: Tensor, vector: Tensor, turns: tuple[Tensor, Tensor]) -> Tensor:
        """Tokens of image [B, N, D] and text [B, T, D] through all blocks, told a noise level [B, D]. -> [B, N, D]"""
        of_image, of_text = self.double_stream_modulation_img(vector), self.double_stream_modulation_txt(vector)
        for block in self.transformer_blocks:
            words, tokens = block(tokens, words, temb_mod_img=of_image, temb_mod_txt=of_text, image_rotary_emb=turns)
        both = torch.cat([words, tokens], dim=1)  # [B, T + N, D]
        of_both = self.single_stream_modulation(vector)
        for block in self.single_transformer_blocks:
            both = block(both, None, temb_mod=of_both, image_rotary_emb=turns)
        return both[:, words.shape[1] :]


KIND = BackboneKind(
    spec=Flux2Spec,
    module=Flux2,
    tiny=Flux2Spec(
        channels=16,
        height=4,
        width=4,
        patch=1,
        dim=32,
        depth=2,
        single_depth=2,
        num_heads=2,
        axes=(4, 4, 4, 4),
        mlp_ratio=1.5,
        text_dim=16,
        max_tokens=7,
    ),
    is_published=True,
    conditions=PRESET_TEXT,
)
