"""What all transformers with a latent interface share, so that their core can run on fewer tokens (paper, section 3.3).

A kind says what its head, core and tail are made of. Letters: B batch, C channels, H x W sample size, N spatial tokens,
G groups, J latents per group, L level (J̃), D width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.backbone import LatentParts
from elit_serve.nn.backbones.elastic import ElasticSpec, SplitSpec, in_split
from elit_serve.nn.backbones.kind import Conditions
from elit_serve.nn.backbones.transformer import (
    SIZES,
    Layout,
    Transformer,
    blocks_of,
    preset_fields,
    tiny_fields,
)
from elit_serve.nn.fields import nested, one_of
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import LatentInterface, Read, Write, spread_places
from elit_serve.nn.kept import Kept, mask_of, masked, only_kept
from elit_serve.nn.layers import Block, run, settled
from elit_serve.nn.reuse import CoreChange, are_given, levels_of, through_core


@dataclass(frozen=True, kw_only=True)
class InterfaceSpec(SplitSpec):
    """The latent interface of ELIT (paper, section 3.3); its window and split are those of `SplitSpec`.

    start: how training finds the latents. With `places` each latent starts as one token of its group: it carries that
        token's RoPE phase, reads it and is read by it. With `alike`, the paper's text, all latents of a group carry the
        phase of its centre, and training may leave them alike (models/recipes/training.md has what each is worth). With
        `tokens` each latent carries one token of its group through the core, so that the full level of a fresh model is
        a plain one of the same blocks: what a trained plain model is turned into.
    reach: what Read and Write work on below the full level: `all` latents, of which only the first run through the
        core, or only that `prefix`.
    knows: what modulates the blocks beside time and condition: `nothing`, or the `level` that they run at.
    """

    start: str = one_of(("places", "alike", "tokens"), "places")
    reach: str = one_of(("all", "prefix"), "all")
    knows: str = one_of(("nothing", "level"), "nothing")

    def check(self) -> None:
        if self.start == "tokens" and self.reach != "all":
            raise InvalidInput("reach", self.reach, "all, where latents start as tokens")


@dataclass(frozen=True, kw_only=True)
class ElitSpec(ElasticSpec):
    """A transformer of `depth` blocks in all, split by its interface."""

    interface: InterfaceSpec = nested(InterfaceSpec)  # noqa: RUF009 (it makes a field)

    @property
    def reads_all(self) -> bool:
        return self.interface.reach == "all"


class Elit(Transformer):
    """A spatial head, a core on a prefix of the latents, a spatial tail; here each is a plain run of blocks."""

    spec: ElitSpec

    def make_blocks(self) -> None:
        spec, interface = self.spec, self.spec.interface
        self.level_embed = nn.Embedding(spec.latents_per_group, spec.dim) if interface.knows == "level" else None
        self.head = self.new_blocks(interface.head)
        self.latents = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        has_places = interface.start != "alike"
        self.places = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim)) if has_places else None  # [J, D]
        self.read = Read(spec.dim, spec.num_heads)
        without_rope = spec.positions == "learned"  # nothing else tells the core which group a latent is of
        self.core_positions = nn.Parameter(torch.empty(spec.num_tokens, spec.dim)) if without_rope else None  # [G*J, D]
        self.core = self.core_blocks()
        self.write = Write(spec.dim, spec.num_heads)
        self.tail = self.new_blocks(interface.tail)

    def core_blocks(self) -> nn.ModuleList:
        """The blocks of the core."""
        return self.new_blocks(self.spec.interface.core)

    def start(self) -> None:
        self.interface.start(self.window)
        if self.carries_tokens and self.level_embed is not None:
            nn.init.zeros_(self.level_embed.weight)

    @property
    def carries_tokens(self) -> bool:
        return self.spec.interface.start == "tokens"

    @property
    def interface(self) -> LatentInterface:
        """Of what there is at this moment: a checkpoint may put other tensors in the place of these."""
        return LatentInterface(
            read=self.read,
            write=self.write,
            latents=self.latents,
            places=self.places,
            core_positions=self.core_positions,
            reach=self.spec.interface.reach,
            carries=self.carries_tokens,
        )

    def compilable(self) -> list[nn.Module]:
        return [*self.head, self.read, *self.core, self.write, *self.tail]

    def spatial_blocks(self) -> list[Block]:
        return [*blocks_of(self.head), *blocks_of(self.tail)]

    def latent_positions(self, positions: Tensor) -> Tensor:
        return self.interface.positions(positions, self.window)

    def latent_tokens(self) -> list[int]:
        return spread_places(self.window) if self.places is not None else super().latent_tokens()

    def from_plain(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return in_split(weights, self.spec.interface)

    def latent_parts(self) -> LatentParts:
        return LatentParts(
            reading=self.read.attention,
            read=self.read,
            core=tuple(blocks_of(self.core)),
            writing=self.write.attention,
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
        """Velocity at a level, or at several levels in one call.

        x [B, C, H, W], t [B], class ids [B] -> [B, C, H, W]. With a sequence of S levels the batch is S equal
        parts and part i runs at level[i]: head and tail run once over all of them, which costs less
        than S calls. `latent_order` [J] permutes the learned latents (training with random drop does). What `changes`
        skips is between Read and Write. Samples with `own_levels` [B] keep no more latents than these say.
        """
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        levels = [level] if isinstance(level, int) else list(level)
        assert all(1 <= each <= self.spec.latents_per_group for each in levels), levels
        known = self._known(levels, own_levels, changes, len(x))
        tokens, c = self.embed(x, t, condition, known)  # [B, N, D], [B, D]
        core = () if are_given(changes) else self.core
        modulations = self.modulations([*self.head, self.read, *core, *self.tail, self.final], c)

        def inside(tokens: Tensor) -> Tensor:  # [B, N, D] -> [B, N, D]
            modulations_inside = [next(modulations) for _ in (self.read, *core)]  # [B, 6D] each
            part_at = partial(self._part_through_latents, order=latent_order, layout=layout)
            return self.at_each_level(part_at, tokens, modulations_inside, levels, own_levels, changes)

        written = self.run_around(inside, tokens, modulations, layout.token_rope)
        return self.unembed(written, next(modulations), layout)  # [B, C, H, W]

    def run_around(
        self, inside: Callable[[Tensor], Tensor], tokens: Tensor, modulations: Iterator[Tensor], rope: Tensor
    ) -> Tensor | Residual:
        """Tokens [B, N, D] through the head, what is inside, and the tail. -> a stream of tokens"""
        read_from = settled(run(self.head, tokens, modulations, rope))  # [B, N, D]
        return run(self.tail, inside(read_from), modulations, rope)

    def run_core(
        self,
        z: Tensor | Residual,
        modulations: Iterator[Tensor],
        rope: Tensor,
        _: Layout,
        kept: Kept | None,
    ) -> Tensor | Residual:
        """A stream of latents and their RoPE [2, G * L, 1, E/2] through the core. -> a stream of latents

        kept: where samples keep different latents, and see no others; what becomes of others does not matter.
        """
        return run(masked(self.core, mask_of(kept, z)), z, modulations, rope)

    def _known(
        self, levels: Sequence[int], own_levels: Tensor | None, changes: Sequence[CoreChange], batch: int
    ) -> Tensor | None:
        """The learned vector of each sample's level, if the model knows it. [B, D]"""
        if self.level_embed is None:
            return None
        if own_levels is not None:
            return self.level_embed(own_levels - 1)
        if are_given(changes):
            return self.level_embed(levels_of(changes) - 1)
        part = batch // len(levels)
        return torch.cat([self.level_embed.weight[level - 1].expand(part, -1) for level in levels])

    def _part_through_latents(
        self,
        tokens: Tensor,
        modulations: Sequence[Tensor],
        level: int,
        own_levels: Tensor | None,
        change: CoreChange | None,
        *,
        order: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        """Read, core on the first `level` latents of each group, Write: tokens [B, N, D] -> [B, N, D]."""
        of_read, *of_core = modulations
        kept = Kept.of(own_levels, level, layout.num_groups)

        def core(z: Tensor | Residual, rope: Tensor) -> Tensor:
            run_core = only_kept(lambda z: self.run_core(z, iter(of_core), rope, layout, kept), kept)
            return through_core(run_core, z, change)

        return self.interface.through(
            core,
            tokens,
            of_read,
            level,
            num_groups=layout.num_groups,
            token_rope=layout.token_rope,
            latent_rope=layout.latent_rope,
            latent_tokens=layout.latent_tokens if self.carries_tokens else None,
            order=order,
            kept=kept,
        )


def elit_preset_fields(
    kind: str, size: str, patch: int, resolution: int, channels: int, conditions: Conditions
) -> dict[str, Any]:
    """The fields of a preset of a kind, as `preset_fields`, and its interface (paper, section 4.1 and appendix B)."""
    sized = SIZES[size]
    fields, window = preset_fields(f"{kind}-{size}/{patch}", sized, patch, resolution, channels, conditions)
    head, core, tail = sized.split
    return {**fields, "interface": InterfaceSpec(window=(window, window), head=head, core=core, tail=tail)}


def tiny_elit_fields(head: int, core: int, tail: int, conditions: Conditions) -> dict[str, Any]:
    """As `tiny_fields`, with 8 groups of 8 latents."""
    interface = InterfaceSpec(window=(2, 4), head=head, core=core, tail=tail)
    return {**tiny_fields(head + core + tail, conditions), "interface": interface}
