"""ELIT-SiT: a SiT with a latent interface, as the published ELIT checkpoints have it; not as the paper's text has it.

Places are added to the tokens and stay in them, the class and time modulate the tokens that Read reads instead of its
queries, queries and keys are normalised over all heads together, and latents get a position each after Read. Read and
Write work on all J latents at every level: the core changes the first L of each group, and Write finds the others as
Read left them. The MLPs of Read and Write have biases here, which imported weights set to zero.

Letters: B batch, C channels, H x W sample size, N spatial tokens, G groups, J latents per group, L level (J̃), D width,
H heads, E = D / H head size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.backbone import LatentParts
from elit_serve.nn.backbones.classes import TINY_CLASSES, ClassSpec
from elit_serve.nn.backbones.elastic import ElasticSpec, SplitSpec, in_split
from elit_serve.nn.backbones.kind import BackboneKind, Conditions
from elit_serve.nn.backbones.sit import CHANNELS, SineTransformer, SiTSpec
from elit_serve.nn.backbones.transformer import (
    PRESETS,
    SIZES,
    Layout,
    blocks_of,
    preset_fields,
    tiny_fields,
)
from elit_serve.nn.fields import nested, one_of
from elit_serve.nn.fused import Residual, norm_modulate, settle_and_norm
from elit_serve.nn.interface import (
    first_of_each_group,
    in_every_group,
    in_order,
    spread_places,
    with_first_replaced,
    with_latents_as_tokens,
)
from elit_serve.nn.kept import Kept, mask_of, masked, only_kept
from elit_serve.nn.layers import Block, GroupedCrossAttention, HeadNorm, Mlp, run, settled
from elit_serve.nn.reuse import CoreChange, are_given, through_core


@dataclass(frozen=True, kw_only=True)
class SineInterfaceSpec(SplitSpec):
    """The latent interface of an ELIT-SiT.

    start: how training finds the latents. With `learned` they are as in the published code. With `tokens` each carries
        one token of its group through the core, so that the full level of a fresh model is a plain SiT of the same
        blocks, and they are in an order in which every prefix covers the window evenly.
    """

    start: str = one_of(("learned", "tokens"), "learned")


NUM_POSITIONS = 4096  # of latents; those of a grid of N tokens are the first N, counted row by row
SPLITS = {name: size.split for name, size in SIZES.items()} | {"xl": (8, 16, 4)}  # XL as it was published


@dataclass(frozen=True, kw_only=True)
class ElitSiTSpec(ElasticSpec, ClassSpec):
    """A SiT of `depth` blocks in all, split by its interface."""

    kind: ClassVar[str] = "elit-sit"
    positions: str = one_of(("sine",), "sine")
    interface: SineInterfaceSpec = nested(SineInterfaceSpec)  # noqa: RUF009 (it makes a field)

    def plain(self) -> SiTSpec:
        return SiTSpec(**self.plain_fields())

    def check_size(self, *size: int) -> None:
        super().check_size(*size)
        height, width = size
        num_tokens = math.prod(self.token_grid(height, width))
        if num_tokens > NUM_POSITIONS:
            raise InvalidInput("height, width", size, f"{num_tokens} tokens; latents have {NUM_POSITIONS} positions")


def width_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / (rms(x) + 1e-5) * weight over the whole width, before heads are split: x [B, N, D], weight [D]."""
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32) / math.sqrt(x.shape[-1])
    return (x / (rms + 1e-5)).to(x.dtype) * weight.to(x.dtype)


class WidthNormedAttention(GroupedCrossAttention):
    """Cross-attention inside groups without RoPE, whose QK normalisation is over all heads together."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.q_norm, self.k_norm = HeadNorm(dim), HeadNorm(dim)

    def project(
        self, x: Tensor, context: Tensor, rope: Tensor | None, context_rope: Tensor | None, num_groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert rope is None
        assert context_rope is None
        q = width_norm(self.q(x), self.q_norm.weight)  # [B, N, D]
        k, v = self.kv(context).chunk(2, dim=-1)  # [B, K, D] each
        k = width_norm(k, self.k_norm.weight)
        q, k, v = (torch.unflatten(part, 2, (self.num_heads, -1)) for part in (q, k, v))  # [B, ., H, E] each
        return self.fold(q, num_groups), self.fold(k, num_groups), self.fold(v, num_groups)


class Read(nn.Module):
    """Latents read the tokens of their group; `modulation(c)` is of these tokens, and of the latents' MLP."""

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(window_size, dim))  # [J, D]
        self.attention = WidthNormedAttention(dim, num_heads)
        self.mlp = Mlp(dim, ratio=1)
        self.modulation = nn.Linear(dim, 6 * dim)

    def gates(self) -> tuple[Tensor, Tensor]:
        """The gates of attention and MLP before anything is learned: views [D] of the modulation's bias."""
        _, _, gate1, _, _, gate2 = self.modulation.bias.chunk(6)
        return gate1, gate2

    def forward(self, latents: Tensor, tokens: Tensor, modulation: Tensor, num_groups: int) -> Residual:
        """latents [B, G * J, D] read tokens [B, N, D] under `modulation(c)` [B, 6D]. -> a stream of latents"""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        read = self.attention(latents, norm_modulate(tokens, shift1, scale1), None, None, num_groups)
        latents, normed = settle_and_norm(Residual(latents, read, gate1), shift2, scale2)
        return Residual(latents, self.mlp(normed), gate2)


class Write(nn.Module):
    """Tokens read the latents of their group, with no norm and no modulation at all.

    Both output projections start at zero, so an untrained Write is the identity but for its places.
    """

    def __init__(self, dim: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.empty(window_size, dim))  # [J, D]
        self.attention = WidthNormedAttention(dim, num_heads)
        self.mlp = Mlp(dim, ratio=1)
        self.zero_at_start = (self.attention.out, self.mlp.down)

    def forward(self, tokens: Tensor, latents: Tensor, num_groups: int) -> Tensor:
        """tokens [B, N, D] read latents [B, G * J, D]. -> [B, N, D]"""
        tokens = tokens + self.attention(tokens, latents, None, None, num_groups)
        return tokens + self.mlp(tokens)


def placed(tokens: Tensor, places: Tensor, num_groups: int) -> Tensor:
    """Tokens [B, N, D] with the vector of their place in the window added, places [J, D]."""
    return tokens + in_every_group(places, 1, num_groups).to(tokens.dtype)


class ElitSiT(SineTransformer):
    """ELIT-SiT: a spatial head, a core on a prefix of the latents, a spatial tail."""

    spec: ElitSiTSpec

    def make_blocks(self) -> None:
        spec, interface = self.spec, self.spec.interface
        self.head = self.new_blocks(interface.head)
        self.latents = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        self.read = Read(spec.dim, spec.num_heads, spec.latents_per_group)
        self.core_positions = nn.Parameter(torch.empty(NUM_POSITIONS, spec.dim))
        self.core = self.new_blocks(interface.core)
        self.write = Write(spec.dim, spec.num_heads, spec.latents_per_group)
        self.tail = self.new_blocks(interface.tail)

    def start(self) -> None:
        """Read is open from the start: behind closed gates, before a Write that is zero, it would learn nothing until
        both have opened. How the published weights began is not known. What carries tokens learns behind closed gates
        too, and begins with nothing that is added to them."""
        if self.carries_tokens:
            for added in (self.latents, self.core_positions, self.write.places):
                nn.init.zeros_(added)
            return
        with torch.no_grad():
            for gate in self.read.gates():
                gate.fill_(1)

    @property
    def carries_tokens(self) -> bool:
        return self.spec.interface.start == "tokens"

    def latent_tokens(self) -> list[int]:
        return spread_places(self.window) if self.carries_tokens else super().latent_tokens()

    def compilable(self) -> list[nn.Module]:
        return [*self.head, self.read, *self.core, self.write, *self.tail]

    def gathered(self) -> list[nn.Module]:
        """The places that Read and Write hold are added to tokens outside of them."""
        return [part for part in super().gathered() if part not in (self.read, self.write)]

    def spatial_blocks(self) -> list[Block]:
        return [*blocks_of(self.head), *blocks_of(self.tail)]

    def latent_positions(self, positions: Tensor) -> Tensor:
        """One latent on each token of its group, row by row: token positions [N, 2] -> [G, J, 2]."""
        return positions.view(-1, self.spec.latents_per_group, 2)

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

        x [B, C, H, W], t [B], class ids [B] -> [B, C, H, W]. With a sequence of S levels the batch is S equal parts and
        part i runs at level[i]: all but the core run once over all of them. `latent_order` [J] permutes the latents
        after Read, which works on all of them anyway (training with random drop does). What `changes` skips is between
        Read and Write. Samples with `own_levels` [B] keep no more latents than these say.
        """
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        groups = layout.num_groups
        levels = [level] if isinstance(level, int) else list(level)
        assert all(1 <= each <= self.spec.latents_per_group for each in levels), levels
        tokens, c = self.embed(x, t, condition)  # [B, N, D], [B, D]
        core = () if are_given(changes) else self.core
        modulations = self.modulations([*self.head, self.read, *core, *self.tail, self.final], c)
        stream = run(self.head, tokens, modulations, layout.token_rope)
        tokens = settled(stream)
        asked = placed(tokens, self.read.places, groups)  # [B, N, D]
        start = in_every_group(self.latents, len(x), groups)  # [B, G * J, D]
        if self.carries_tokens:
            start = start.to(tokens.dtype) + tokens
        latents = self.read(start, asked, next(modulations), groups)
        latents = settled(latents) + self.core_positions.index_select(0, layout.raster)  # [B, G * J, D]
        places = layout.latent_tokens
        if self.carries_tokens:
            latents = in_order(latents, places, groups)
        if latent_order is not None:
            places = places[latent_order]
            latents = in_order(latents, latent_order, groups)
        part_at = partial(self._part_through_core, layout=layout)
        of_core = [next(modulations) for _ in core]
        latents = self.at_each_level(part_at, latents, of_core, levels, own_levels, changes)
        before = with_latents_as_tokens(tokens, latents, places, groups) if self.carries_tokens else asked
        tokens = self.write(placed(before, self.write.places, groups), latents, groups)
        stream = run(self.tail, tokens, modulations, layout.token_rope)
        return self.unembed(stream, next(modulations), layout)  # [B, C, H, W]

    def _part_through_core(
        self,
        latents: Tensor,
        modulations: Sequence[Tensor],
        level: int,
        own_levels: Tensor | None,
        change: CoreChange | None,
        *,
        layout: Layout,
    ) -> Tensor:
        """The core on the first `level` latents of each group: latents [B, G * J, D] -> [B, G * J, D]."""

        kept = Kept.of(own_levels, level, layout.num_groups)
        blocks = masked(self.core, mask_of(kept, latents))

        def run_core(first: Tensor | Residual) -> Tensor | Residual:
            return run(blocks, first, iter(modulations), layout.latent_rope)

        core = only_kept(run_core, kept)
        if level == self.spec.latents_per_group:
            return through_core(core, latents, change)
        first = first_of_each_group(latents, level, layout.num_groups)  # [B, G * L, D]
        return with_first_replaced(latents, through_core(core, first, change), layout.num_groups)


def _preset(size: str, patch: int, resolution: int, channels: int, conditions: Conditions) -> ElitSiTSpec:
    name = f"elit-sit-{size}/{patch}"
    fields, window = preset_fields(name, SIZES[size], patch, resolution, channels, conditions)
    head, core, tail = SPLITS[size]
    return ElitSiTSpec(**fields, interface=SineInterfaceSpec(window=(window, window), head=head, core=core, tail=tail))


KIND = BackboneKind(
    spec=ElitSiTSpec,
    module=ElitSiT,
    tiny=ElitSiTSpec(
        **tiny_fields(4, TINY_CLASSES), interface=SineInterfaceSpec(window=(2, 4), head=1, core=2, tail=1)
    ),
    presets={f"elit-sit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
    channels=CHANNELS,
)
