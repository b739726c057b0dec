"""ELIT-PRX: PRX of diffusers with a latent interface (paper, section 4.4): a dense folder, and a small file beside it.

The dense weights keep their names and files; those of Read, Write and the latents are new. Each latent carries one
token of its group through the core, so that a fresh interface changes nothing at the full level.

Letters: B batch, C channels, H x W sample size, P patch, N image tokens, T text tokens, G groups, J latents per group,
L level, K = G * L tokens of the core, D width, E head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.dense.prx import PRX, PRXSpec
from elit_serve.nn.backbones.elastic import SplitSpec, WithLatents
from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import (
    LatentInterface,
    Read,
    Write,
    first_of_each_group,
    in_order,
    patchify,
    spread_places,
    token_positions,
    unpatchify,
)
from elit_serve.nn.kept import Kept, only_kept
from elit_serve.nn.layers import attend, initialise, rope_table, settled
from elit_serve.nn.reuse import CoreChange, through_core
from elit_serve.nn.text import TextTokens
from elit_serve.plans.size import nearest_multiples


@dataclass(frozen=True, kw_only=True)
class ElitPRXSpec(WithLatents, PRXSpec):
    """A PRX whose blocks are split by its interface."""

    kind: ClassVar[str] = "elit-prx"

    def check(self) -> None:
        if self.dim % (4 * self.num_heads):
            raise InvalidInput("num_heads", self.num_heads, f"dim / num_heads divisible by 4, and dim is {self.dim}")
        super().check()

    def check_size(self, *size: int) -> None:
        super().check_size(*size)
        for name, side, tokens in zip(("height", "width"), size, self.interface.window, strict=True):
            if side % (step := tokens * self.patch):
                nearest = nearest_multiples(side, step)
                raise InvalidInput(name, side, f"it must be a multiple of {step} (whole windows), as {nearest}")

    def plain(self) -> PRXSpec:
        return PRXSpec(**{each.name: getattr(self, each.name) for each in fields(PRXSpec)})

    def core_shape(self, level: int) -> tuple[int, int]:
        return self.num_groups * level, self.dim

    def core_flops(self, level: int) -> float:
        return self._of_blocks(self.interface.core, self.num_groups * level)

    def spatial_flops(self) -> float:
        return self._of_blocks(self.interface.head + self.interface.tail, self.num_tokens)

    def _of_blocks(self, count: int, tokens: int) -> float:
        return count / self.depth * self.blocks_flops(tokens)


class Layout(NamedTuple):
    """Everything that depends on the sample size alone; tokens are laid out group by group.

    turns: of tokens, as PRX turns them [1, 1, N, E / 2, 2, 2]. latent_turns: the same of the tokens that latents carry,
    [1, 1, G * J, E / 2, 2, 2]. rope, latent_rope: as Read and Write turn both [2, N, 1, E / 2], [2, G * J, 1, E / 2].
    places: of the tokens that latents carry, in their group [J].
    """

    num_groups: int
    turns: Tensor
    latent_turns: Tensor
    rope: Tensor
    latent_rope: Tensor
    places: Tensor


class Told(NamedTuple):
    """What all blocks are told alike. vector: of time [B, D]. words: of the text [B, T, D]. seen: which of these there
    are, to be added to scores [B, 1, 1, T]."""

    vector: Tensor
    words: Tensor
    seen: Tensor

    def chunk(self, count: int) -> list[Told]:
        """Of equal parts of the batch."""
        return [Told(*part) for part in zip(*(each.chunk(count) for each in self), strict=True)]


class ElitPRX(PRX):
    """PRX with a spatial head, a core on a prefix of the latents, a spatial tail, and text beside all of them."""

    spec: ElitPRXSpec

    def __init__(self, spec: ElitPRXSpec) -> None:
        super().__init__(spec)
        for block in self.blocks:
            attention: Any = block.attention
            attention.set_processor(AddedMask())
        self.make_interface()

    def make_interface(self) -> None:
        """What a dense model lacks, as it starts; made anew if it is there, as in a model without memory."""
        spec = self.spec
        self.latents = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        self.places = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        self.read = Read(spec.dim, spec.num_heads)
        self.write = Write(spec.dim, spec.num_heads)
        for part in (self.read, self.write):
            initialise(part)
        self.interface.start(spec.interface.window)

    @property
    def interface(self) -> LatentInterface:
        """Of what there is at this moment: a checkpoint may put other tensors in the place of these."""
        return LatentInterface(
            read=self.read,
            write=self.write,
            latents=self.latents,
            places=self.places,
            core_positions=None,
            reach="all",
            carries=True,
        )

    def from_plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(weights)

    def compilable(self) -> list[nn.Module]:
        return [*self.blocks, self.read, self.write]

    def gathered(self) -> list[nn.Module]:
        """Read is modulated by what is computed before it runs."""
        return [self.read.modulation, *super().gathered()]

    def make_layout(self, rows: int, columns: int, device: torch.device) -> Layout:
        window = self.spec.interface.window
        positions = token_positions(rows, columns, window, device)  # [N, 2]
        places = torch.tensor(spread_places(window), device=device)
        count, head_size = len(positions) // len(places), self.spec.dim // self.spec.num_heads
        carried = in_order(positions, places, count, dim=0)  # [G * J, 2]
        return Layout(
            num_groups=count,
            turns=self.pe_embedder(positions.unsqueeze(0)),
            latent_turns=self.pe_embedder(carried.unsqueeze(0)),
            rope=rope_table(positions, head_size),
            latent_rope=rope_table(carried, head_size),
            places=places,
        )

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
        levels = [level] if isinstance(level, int) else list(level)
        assert all(1 <= each <= self.spec.latents_per_group for each in levels), levels
        layout, window = self.layout(x.shape, x.device), self.spec.interface.window
        told, split = self.told_of(x, 1 - t, TextTokens.of(condition)), self.spec.interface
        tokens = self.img_in(patchify(x.to(self.dtype), patch=self.spec.patch, window=window))  # [B, N, D]
        tokens = run_blocks(self.blocks[: split.head], tokens, told, layout.turns, told.seen)
        count = len(levels)
        own = [None] * count if own_levels is None else list(own_levels.chunk(count))
        left: list[CoreChange | None] = [*changes] or [None] * count
        parts = zip(tokens.chunk(count), told.chunk(count), levels, own, left, strict=True)
        tokens = torch.cat([self.through_latents(*part, latent_order, layout) for part in parts])
        tokens = run_blocks(self.blocks[split.head + split.core :], tokens, told, layout.turns, told.seen)
        patches = self.final_layer(tokens, told.vector)  # [B, N, C * P * P]
        height, width = x.shape[-2:]
        return -unpatchify(patches, patch=self.spec.patch, window=window, height=height, width=width)

    def told_of(self, x: Tensor, sigma: Tensor, text: TextTokens) -> Told:
        """Of samples [B, C, H, W] at sigma [B]."""
        told = self.told(x, sigma, text)
        seen = torch.zeros_like(text.mask, dtype=self.dtype).masked_fill_(~text.mask, -torch.inf)
        return Told(told["temb"], told["encoder_hidden_states"], seen[:, None, None])

    def through_latents(
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
        groups, split = layout.num_groups, self.spec.interface
        kept = Kept.of(own_levels, level, groups)
        turns = layout.latent_turns if order is None else in_order(layout.latent_turns, order, groups, dim=2)
        turns = first_of_each_group(turns, level, groups, dim=2)
        blocks = self.blocks[split.head : split.head + split.core]

        def core(z: Tensor | Residual, _: Tensor) -> Tensor:
            seen = told.seen if kept is None else torch.cat([told.seen, kept.mask(self.dtype)], dim=-1)
            run = partial(run_blocks, blocks, told=told, turns=turns, seen=seen)
            return through_core(only_kept(lambda z: run(settled(z)), kept), z, change)

        return self.interface.through(
            core,
            tokens,
            self.read.modulation(F.silu(told.vector)),
            level,
            num_groups=groups,
            token_rope=layout.rope,
            latent_rope=layout.latent_rope,
            latent_tokens=layout.places,
            order=order,
            kept=kept,
        )


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


def turned(x: Tensor, turns: Tensor) -> Tensor:
    """Pairs of numbers next to each other, each turned: x [B, H, K, E], turns [1, 1, K, E / 2, 2, 2]."""
    pairs = x.float().reshape(*x.shape[:-1], -1, 1, 2)
    return (turns * pairs).sum(dim=-1).flatten(-2).to(x.dtype)


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
    is_published=True,
)
