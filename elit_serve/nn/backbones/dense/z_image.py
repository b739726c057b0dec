"""Z-Image: image and text tokens, each through a few blocks of their own, then both as one stream.

Tokens of an image and of a prompt are each filled up to whole multiples of 32 by a learned token, which is attended to
as any other. Where the image stands depends on how long the prompt is, filled up. diffusers' module takes lists of
both; here all prompts have the places of the longest that there may be. Those that nothing fills are masked, and each
image is turned by phases of its own.

Letters: B batch, C channels, H x W sample size, N image tokens, T text tokens, D width, E head size; M and S are N and
T filled up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.dense.dense import ONE, Dense, DenseSpec
from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.backbones.texts import PRESET_TEXT
from elit_serve.nn.fields import flag, number, several, whole
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import patchify, unpatchify
from elit_serve.nn.layers import settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextTokens

FILLED = 32  # tokens: images and prompts have whole multiples of them


@dataclass(frozen=True, kw_only=True)
class ZImageSpec(DenseSpec):
    """depth: blocks of one stream; refiner_depth: those of images alone before, and as many of text. axes: how much of
    a head its RoPE turns by frame, row and column; places: how many of each there are. has_norm: of queries and keys.
    """

    kind: ClassVar[str] = "z-image"
    their_class: ClassVar[str] = "ZImageTransformer2DModel"
    their_names: ClassVar[dict[str, str]] = {
        "channels": "in_channels", "patch": "all_patch_size", "text_dim": "cap_feat_dim", "dim": "dim",
        "depth": "n_layers", "refiner_depth": "n_refiner_layers", "num_heads": "n_heads", "eps": "norm_eps",
        "has_norm": "qk_norm", "theta": "rope_theta", "time_factor": "t_scale", "axes": "axes_dims",
        "places": "axes_lens",
    }  # fmt: skip
    their_constants: ClassVar[dict[str, object]] = {"all_f_patch_size": [1], "siglip_feat_dim": None}

    refiner_depth: int = whole(0, 512, 2)
    axes: tuple[int, ...] = several(3, 2, 1024, (32, 48, 48))
    places: tuple[int, ...] = several(3, 1, 1 << 16, (1024, 512, 512))
    theta: float = number(2, 1e9, 256.0)
    time_factor: float = number(1e-3, 1e6, 1000.0)
    eps: float = number(1e-12, 0.1, 1e-5)
    has_norm: bool = flag(True)

    @classmethod
    def completed(cls, table: dict[str, object]) -> dict[str, object]:
        """It has one size of patches, and as many heads of keys as of queries."""
        rest = dict(table)
        if rest.get("n_kv_heads") == rest.get("num_heads"):
            rest.pop("n_kv_heads", None)
        if isinstance(patches := rest.get("patch"), list | tuple) and len(patches) == 1:
            rest["patch"] = patches[0]
        return rest

    def arguments(self) -> dict[str, Any]:
        of_fields = super().arguments() | {"axes_dims": list(self.axes), "axes_lens": list(self.places)}
        return of_fields | {"all_patch_size": [self.patch], "n_kv_heads": self.num_heads}

    def check(self) -> None:
        if self.dim % self.num_heads or sum(self.axes) != self.dim // self.num_heads or any(a % 2 for a in self.axes):
            head = f"{self.dim} / {self.num_heads}"
            raise InvalidInput("axes", self.axes, f"three even numbers, together the size of a head: {head}")
        if filled(self.max_tokens) + 2 > self.places[0]:
            raise InvalidInput(
                "max_tokens", self.max_tokens, f"at most {self.places[0] - FILLED}, for {self.places[0]} places"
            )
        super().check()

    def check_size(self, *size: int) -> None:
        super().check_size(*size)
        for name, side, places in zip(("height", "width"), size, self.places[1:], strict=True):
            if side > places * self.patch:
                raise InvalidInput(name, side, f"at most {places * self.patch}, for {places} places of patches")

    def blocks_flops(self, tokens: int) -> float:
        """Of blocks for images, for text and for both: projections, gated MLPs and attention."""
        image, text = filled(tokens), filled(self.max_tokens)
        own = self.refiner_depth * (self._block_flops(image) + self._block_flops(text))
        return own + self.depth * self._block_flops(image + text)

    def _block_flops(self, tokens: int) -> float:
        return tokens * (8 * self.dim**2 + 6 * self.dim * int(self.dim / 3 * 8)) + 4 * tokens**2 * self.dim


def filled(count: int) -> int:
    """So many tokens, filled up."""
    return -(-count // FILLED) * FILLED


class _Words(NamedTuple):
    """Prompts, filled up. tokens: [B, S, D]. seen: bool [B, S], where there is one, or one that fills it up. lengths:
    int64 [B], of those."""

    tokens: Tensor
    seen: Tensor
    lengths: Tensor


class _Turns(NamedTuple):
    """Rotations as complex numbers. image: [B, M, E / 2]. words: [B, S, E / 2]."""

    image: Tensor
    words: Tensor


class ZImage(Dense):
    """Z-Image of diffusers; its only level is 1."""

    spec: ZImageSpec
    all_x_embedder: nn.ModuleDict
    all_final_layer: nn.ModuleDict
    noise_refiner: nn.ModuleList
    context_refiner: nn.ModuleList
    layers: nn.ModuleList
    t_embedder: nn.Module
    cap_embedder: nn.Module
    x_pad_token: nn.Parameter
    cap_pad_token: nn.Parameter

    def unfused(self) -> list[nn.Module]:
        """None: its blocks turn by complex numbers, which torch runs as they are, between compiled parts."""
        return []

    def every_block(self) -> Iterable[nn.Module]:
        return [*self.noise_refiner, *self.context_refiner, *self.layers]

    def make_layout(self, rows: int, columns: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Rotations as complex numbers, [S + 2, E' / 2] and [N, E'' / 2]: by each place on the first axis, which counts
        the tokens of a text from 1 and then the picture, and of each image token by row and column.
        """
        from diffusers.models.transformers.transformer_z_image import RopeEmbedder

        ends = [filled(self.spec.max_tokens) + 2, rows, columns]
        tables = RopeEmbedder.precompute_freqs_cis(list(self.spec.axes), ends, theta=self.spec.theta)
        frames, by_row, by_column = (table.to(device) for table in tables)
        return frames, torch.cat([by_row.repeat_interleave(columns, dim=0), by_column.repeat(rows, 1)], dim=-1)

    def time_embedding(self, t: Tensor) -> Tensor:
        embedded: Tensor = self.t_embedder(t * self.spec.time_factor).to(self.dtype)
        return embedded

    def theirs(self, x: Tensor, sigma: Tensor, text: TextTokens, change: CoreChange | None) -> Tensor:
        """Its time is that of the data, 1 - sigma, and its answer data - noise."""
        height, width = x.shape[-2:]
        patch, size = self.spec.patch, f"{self.spec.patch}-1"  # of one frame
        patches = torch.unflatten(patchify(x, patch=patch, window=ONE), -1, (-1, patch**2)).transpose(-1, -2)
        tokens = self.all_x_embedder[size](patches.flatten(-2))  # [B, N, D]
        vector = self.time_embedding(1 - sigma)  # [B, min(D, 256)]
        words = self._filled_words(text)
        turns = self._turns(words, tokens.shape[1], self.layout(x.shape, x.device))

        def core(stream: Tensor | Residual) -> Tensor:
            return self._core(settled(stream), words, vector, turns)

        tokens = through_core(core, tokens, change)
        answer = self.all_final_layer[size](tokens, c=vector)  # [B, N, P * P * C]
        patches = torch.unflatten(answer, -1, (patch**2, -1)).transpose(-1, -2).flatten(-2)
        return -unpatchify(patches, patch=patch, window=ONE, height=height, width=width)

    def _filled_words(self, text: TextTokens) -> _Words:
        """A prompt without any token is filled up as one that has some."""
        missing = filled(text.mask.shape[1]) - text.mask.shape[1]
        embedded = F.pad(self.cap_embedder(text.states.to(self.dtype)), (0, 0, 0, missing))
        mask = F.pad(text.mask, (0, missing))
        lengths = (text.mask.sum(dim=1).clamp(min=1) + FILLED - 1) // FILLED * FILLED  # `filled` of each
        seen = torch.arange(mask.shape[1], device=mask.device) < lengths.unsqueeze(1)
        return _Words(torch.where(mask.unsqueeze(-1), embedded, self.cap_pad_token), seen, lengths)

    def _turns(self, words: _Words, num_tokens: int, layout: tuple[Tensor, Tensor]) -> _Turns:
        """An image is the frame behind its prompt; what fills it up stands at 0 of all axes, as text does of two."""
        frames, grid = layout
        batch, length, _ = words.tokens.shape
        frame = frames[words.lengths + 1].unsqueeze(1)  # [B, 1, E' / 2]
        image = torch.cat([frame.expand(-1, num_tokens, -1), grid.expand(batch, -1, -1)], dim=-1)
        nowhere = image.new_ones(batch, filled(num_tokens) - num_tokens, image.shape[-1])
        text = torch.cat([frames[1 : length + 1], grid.new_ones(length, grid.shape[-1])], dim=-1)
        return _Turns(torch.cat([image, nowhere], dim=1), text.expand(batch, -1, -1))

    def _core(self, tokens: Tensor, words: _Words, vector: Tensor, turns: _Turns) -> Tensor:
        """Image tokens [B, N, D] through all blocks. -> [B, N, D]"""
        batch, count, _ = tokens.shape
        image = torch.cat([tokens, self.x_pad_token.expand(batch, filled(count) - count, -1)], dim=1)  # [B, M, D]
        for block in self.noise_refiner:
            image = block(image, None, turns.image, vector)
        text = words.tokens
        for block in self.context_refiner:
            text = block(text, words.seen, turns.words)
        both = torch.cat([image, text], dim=1)  # [B, M + S, D]
        seen = torch.cat([words.seen.new_ones(image.shape[:2]), words.seen], dim=1)
        of_both = torch.cat([turns.image, turns.words], dim=1)
        for block in self.layers:
            both = block(both, seen, of_both, vector)
        return both[:, :count]


KIND = BackboneKind(
    spec=ZImageSpec,
    module=ZImage,
    tiny=ZImageSpec(
        channels=4,
        height=8,
        width=8,
        patch=2,
        dim=32,
        depth=2,
        refiner_depth=1,
        num_heads=2,
        axes=(4, 6, 6),
        places=(128, 32, 32),
        text_dim=16,
        max_tokens=40,
    ),
    is_published=True,
    conditions=PRESET_TEXT,
)
