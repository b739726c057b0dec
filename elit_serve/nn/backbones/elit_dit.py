"""ELIT-DiT: a DiT with a latent interface, so that its core can run on fewer tokens (paper, section 3.3).

Letters: B batch, C channels, H x W sample size, N spatial tokens, G groups, J latents per group, L level (J̃), D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn.backbones.backbone import LatentParts
from elit_serve.nn.backbones.kind import BackboneKind
from elit_serve.nn.backbones.transformer import (
    PRESETS,
    SIZES,
    Layout,
    Transformer,
    TransformerSpec,
    blocks_of,
    preset_fields,
)
from elit_serve.nn.fields import Checked, nested, one_of, pair, whole
from elit_serve.nn.flops import Flops, block_flops
from elit_serve.nn.fused import Residual
from elit_serve.nn.interface import (
    Read,
    Write,
    first_of_each_group,
    group_centres,
    in_every_group,
    in_order,
    latent_places,
    spread_places,
    with_first_replaced,
)
from elit_serve.nn.layers import Block, settled


@dataclass(frozen=True, kw_only=True)
class InterfaceSpec(Checked):
    """The latent interface of ELIT (paper, section 3.3).

    window: (rows, columns) of tokens in a group; their product is J, the latents per group.
    head, core, tail: transformer blocks before Read, between Read and Write, and after Write.
    start: how training finds the latents. With `places` each latent starts as one token of its group: it carries that
        token's RoPE phase, reads it and is read by it. With `alike`, the paper's text, all latents of a group carry the
        phase of its centre, and training may leave them alike (models/recipes/training.md has what each is worth).
    reach: what Read and Write work on below the full level: `all` latents, of which only the first run through the
        core, or only that `prefix`.
    knows: what modulates the blocks beside time and condition: `nothing`, or the `level` that they run at.
    """

    window: tuple[int, int] = pair(1, 4096)
    head: int = whole(0, 512)
    core: int = whole(1, 512)
    tail: int = whole(0, 512)
    start: str = one_of(("places", "alike"), "places")
    reach: str = one_of(("all", "prefix"), "all")
    knows: str = one_of(("nothing", "level"), "nothing")


@dataclass(frozen=True, kw_only=True)
class ElitDiTSpec(TransformerSpec):
    """A DiT of `depth` blocks in all, split by its interface."""

    kind: ClassVar[str] = "elit-dit"
    interface: InterfaceSpec = nested(InterfaceSpec)  # noqa: RUF009 (it makes a field)

    def check(self) -> None:
        interface = self.interface
        if interface.head + interface.core + interface.tail != self.depth:
            split = f"{interface.head}-{interface.core}-{interface.tail}"
            raise InvalidInput("split", split, f"head, core and tail must add up to depth {self.depth}")
        super().check()
        if min(self.window) <= self.zeros_between:
            allowed = f"at least {self.zeros_between + 1} tokens a side: of smaller groups some hold nothing but zeros"
            raise InvalidInput("window", self.window, allowed)

    @property
    def window(self) -> tuple[int, int]:
        return self.interface.window

    @property
    def latents_per_group(self) -> int:
        """J."""
        return self.window[0] * self.window[1]

    @property
    def droppable_latents(self) -> int:
        return self.latents_per_group

    def flops(self, level: int) -> Flops:
        """Head and tail over all tokens, the core over the latents that are kept, Read and Write in between."""
        spatial = (self.interface.head + self.interface.tail) * block_flops(self.num_tokens, self.dim)
        blocks = spatial + self.interface.core * block_flops(self.num_groups * level, self.dim)
        return Flops(
            prefix=blocks + self._read_and_write_flops(level),
            all_latents=blocks + self._read_and_write_flops(self.latents_per_group),
            reads_all=self.interface.reach == "all",
        )

    def _read_and_write_flops(self, latents_per_group: int) -> float:
        dim, tokens, latents = self.dim, self.num_tokens, self.num_groups * latents_per_group
        projections = 4 * dim**2 * (tokens + latents)
        attention = 4 * latents_per_group * tokens * dim
        read_mlp, write_mlp = 4 * dim**2 * latents, 4 * dim**2 * tokens
        return 2 * (projections + attention) + read_mlp + write_mlp


class Latents(NamedTuple):
    """The latents of all groups before they read, R in each.

    learned: the vectors they start as [R, D], the same in every group. rope: where they stand [2, G * R, 1, E/2].
    positions: what tells them apart in the core where RoPE does not [G * R, D].
    """

    learned: Tensor
    rope: Tensor
    positions: Tensor | None

    def first(self, level: int, num_groups: int) -> Latents:
        """The first `level` of each group."""
        positions = None if self.positions is None else first_of_each_group(self.positions, level, num_groups, dim=0)
        return Latents(self.learned[:level], first_of_each_group(self.rope, level, num_groups), positions)

    def in_order(self, order: Tensor, num_groups: int) -> Latents:
        """Those of each group in this order [R]."""
        positions = None if self.positions is None else in_order(self.positions, order, num_groups, dim=0)
        return Latents(self.learned[order], in_order(self.rope, order, num_groups), positions)


class ElitDiT(Transformer):
    """ELIT-DiT: a spatial head, a core on a prefix of the latents, a spatial tail."""

    spec: ElitDiTSpec

    def make_blocks(self) -> None:
        spec, interface = self.spec, self.spec.interface

        def blocks(count: int) -> nn.ModuleList:
            return nn.ModuleList(Block(spec.dim, spec.num_heads) for _ in range(count))

        self.level_embed = nn.Embedding(spec.latents_per_group, spec.dim) if interface.knows == "level" else None
        self.head = blocks(interface.head)
        self.latents = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim))  # [J, D]
        has_places = interface.start == "places"
        self.places = nn.Parameter(torch.empty(spec.latents_per_group, spec.dim)) if has_places else None  # [J, D]
        self.read = Read(spec.dim, spec.num_heads)
        without_rope = spec.positions == "learned"  # nothing else tells the core which group a latent is of
        self.core_positions = nn.Parameter(torch.empty(spec.num_tokens, spec.dim)) if without_rope else None  # [G*J, D]
        self.core = blocks(interface.core)
        self.write = Write(spec.dim, spec.num_heads)
        self.tail = blocks(interface.tail)

    def start(self) -> None:
        """Each latent starts as one token of its group: Read's query j finds the key of its place, and Write's query of
        a token the key of its latent, because queries and keys are projected alike. Read is open from the start: behind
        closed gates, before a Write that is zero, it would learn nothing until both have opened."""
        if self.places is None:
            return
        with torch.no_grad():
            nn.init.normal_(self.places)
            self.latents.copy_(self.places[spread_places(self.window)])
            for attention in (self.read.attention, self.write.attention):
                attention.kv.weight[: self.spec.dim] = attention.q.weight
            for gate in self.read.gates():
                gate.fill_(1)

    def compilable(self) -> list[nn.Module]:
        return [*self.head, self.read, *self.core, self.write, *self.tail]

    def spatial_blocks(self) -> list[Block]:
        return [*blocks_of(self.head), *blocks_of(self.tail)]

    def latent_positions(self, positions: Tensor) -> Tensor:
        stand = group_centres if self.places is None else latent_places
        return stand(positions, self.window)

    def latent_parts(self) -> LatentParts:
        return LatentParts(read=self.read, core=tuple(blocks_of(self.core)), write=self.write)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor,
        level: int | Sequence[int] = 1,
        latent_order: Tensor | None = None,
    ) -> Tensor:
        """Velocity at a level, or at several levels in one call.

        x [B, C, H, W], t [B], class ids [B] -> [B, C, H, W]. With a sequence of S levels the batch is S equal
        parts and part i runs at level[i]: head and tail run once over all of them, which costs less
        than S calls. `latent_order` [J] permutes the learned latents (training with random drop does).
        """
        layout = self.layout(x.shape[2], x.shape[3], x.device)
        levels = [level] if isinstance(level, int) else list(level)
        assert all(1 <= each <= self.spec.latents_per_group for each in levels), levels
        tokens, c = self.embed(x, t, condition, self._known(levels, len(x)))  # [B, N, D], [B, D]
        modulations = self.modulations([*self.head, self.read, *self.core, *self.tail, self.final], c)
        for block in self.head:
            tokens = block(tokens, next(modulations), layout.token_rope)  # [B, N, D]
        core = [next(modulations) for _ in (self.read, *self.core)]  # [B, 6D] each
        tokens = self._through_latents(settled(tokens), core, levels, latent_order, layout)  # [B, N, D]
        for block in self.tail:
            tokens = block(tokens, next(modulations), layout.token_rope)  # [B, N, D]
        return self.unembed(tokens, next(modulations), layout)  # [B, C, H, W]

    def _known(self, levels: Sequence[int], batch: int) -> Tensor | None:
        """The learned vector of each sample's level, if the model knows it. [B, D]"""
        if self.level_embed is None:
            return None
        part = batch // len(levels)
        return torch.cat([self.level_embed.weight[level - 1].expand(part, -1) for level in levels])

    def _through_latents(
        self,
        tokens: Tensor,
        modulations: Sequence[Tensor],
        levels: Sequence[int],
        order: Tensor | None,
        layout: Layout,
    ) -> Tensor:
        """Equal parts of the batch, each at its level: tokens [B, N, D] -> [B, N, D].

        A core at a low level leaves most of a GPU idle: beside the main pass a weak one costs little time.
        """
        count = len(levels)
        parts = zip(
            _parts(tokens, count), zip(*(_parts(m, count) for m in modulations), strict=True), levels, strict=True
        )
        main, *weak = parts
        with self.beside():
            weak_tokens = [self._part_through_latents(*part, order, layout) for part in weak]
        main_tokens = self._part_through_latents(*main, order, layout)
        self.join()
        return torch.cat([main_tokens, *weak_tokens]) if weak else main_tokens

    def _part_through_latents(
        self, tokens: Tensor, modulations: Sequence[Tensor], level: int, order: Tensor | None, layout: Layout
    ) -> Tensor:
        """Read, core on the first `level` latents of each group, Write: tokens [B, N, D] -> [B, N, D]."""
        groups = layout.num_groups
        latents = Latents(self.latents, layout.latent_rope, self.core_positions)
        if order is not None:
            latents = latents.in_order(order, groups)
        if self.spec.interface.reach == "prefix":
            latents = latents.first(level, groups)
        learned, rope, positions = latents
        placed = tokens if self.places is None else tokens + in_every_group(self.places, 1, groups).to(tokens.dtype)
        read_modulation, *core_modulations = modulations
        z: Tensor | Residual = in_every_group(learned, len(tokens), groups)  # [B, G * R, D], R is level or J
        z = self.read(z, placed, read_modulation, rope, layout.token_rope, groups)
        if positions is not None:
            z = settled(z) + positions
        if level == len(learned):
            z = self._core(z, core_modulations, rope)
        else:
            whole = settled(z)
            first = first_of_each_group(whole, level, groups)  # [B, G * L, D]
            first = self._core(first, core_modulations, first_of_each_group(rope, level, groups))
            z = with_first_replaced(whole, first, groups)
        return self.write(tokens, placed, z, layout.token_rope, rope, groups)  # [B, N, D]

    def _core(self, z: Tensor | Residual, modulations: Sequence[Tensor], rope: Tensor) -> Tensor:
        for block, modulation in zip(self.core, modulations, strict=True):
            z = block(z, modulation, rope)
        return settled(z)


def _parts(whole: Tensor, count: int) -> Sequence[Tensor]:
    """Equal parts of a batch. In training each has memory of its own: compiled blocks take a view for another kind of
    input, and would be compiled twice as often."""
    if count == 1:
        return (whole,)
    parts = whole.chunk(count)
    return [part.clone() for part in parts] if torch.is_grad_enabled() else parts


def _preset(size: str, patch: int, resolution: int, channels: int, num_classes: int) -> ElitDiTSpec:
    sized = SIZES[size]
    fields, window = preset_fields(f"elit-dit-{size}/{patch}", sized, patch, resolution, channels, num_classes)
    head, core, tail = sized.split
    interface = InterfaceSpec(window=(window, window), head=head, core=core, tail=tail)
    return ElitDiTSpec(**fields, interface=interface)


KIND = BackboneKind(
    spec=ElitDiTSpec,
    module=ElitDiT,
    presets={f"elit-dit-{name}": partial(_preset, *which) for name, which in PRESETS.items()},
)
