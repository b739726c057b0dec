"""The latent interface of ELIT (paper, section 3.3): group, Read, prefix, Write.

Letters: B batch, N spatial tokens, G groups, W tokens in a window, J latents per group (J = W), L the
level J̃ <= J (latents kept per group), D width. Spatial tokens are laid out group by group: token
g * W + i is the i-th of group g, and latent g * L + j is the j-th of group g.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.fused import Residual, norm_modulate, settle_and_norm
from elit_serve.nn.kept import Kept
from elit_serve.nn.layers import GroupedCrossAttention, Mlp, settled

Core = Callable[[Tensor | Residual, Tensor], Tensor]  # latents [B, G * L, D] and their RoPE -> [B, G * L, D]


def token_positions(rows: int, columns: int, window: tuple[int, int], device: torch.device) -> Tensor:
    """(row, column) of every token of a rows x columns grid, group by group. -> [N, 2]"""
    grid = torch.stack(
        torch.meshgrid(
            torch.arange(rows, dtype=torch.float32, device=device),
            torch.arange(columns, dtype=torch.float32, device=device),
            indexing="ij",
        )
    )
    return patchify(grid.unsqueeze(0), patch=1, window=window)[0]


def spread_places(window: tuple[int, int]) -> list[int]:
    """The places of a window, numbered row by row, in an order in which every prefix covers it as evenly as it can.

    Each next place is the one farthest from all before, as if the window repeated itself on all sides.
    """
    rows, columns = window

    def apart(one: int, other: int) -> tuple[int, int]:
        down, across = abs(one // columns - other // columns), abs(one % columns - other % columns)
        down, across = min(down, rows - down), min(across, columns - across)
        return down**2 + across**2, -abs(down - across)  # of two equally far, the one on the diagonal

    order = [rows // 2 * columns + columns // 2]
    nearest = {place: apart(place, order[0]) for place in range(rows * columns) if place != order[0]}
    while nearest:
        farthest = max(nearest, key=lambda place: nearest[place])
        order.append(farthest)
        del nearest[farthest]
        nearest = {place: min(distance, apart(place, farthest)) for place, distance in nearest.items()}
    return order


def latent_places(positions: Tensor, window: tuple[int, int]) -> Tensor:
    """Where the latents of each group stand, one on each token: token positions [N, 2] -> [G, J, 2]."""
    return positions.view(-1, window[0] * window[1], 2)[:, spread_places(window)]


def group_centres(positions: Tensor, window: tuple[int, int]) -> Tensor:
    """Where the latents of each group stand if all stand in its centre: token positions [N, 2] -> [G, J, 2]."""
    groups = positions.view(-1, window[0] * window[1], 2)
    return groups.mean(dim=1, keepdim=True).expand_as(groups)


def patchify(x: Tensor, *, patch: int, window: tuple[int, int]) -> Tensor:
    """Cuts samples into patches, group by group: x [B, C, H, W] -> [B, N, C * patch * patch]."""
    batch, channels, height, width = x.shape
    rows, columns = window
    x = x.view(batch, channels, height // (rows * patch), rows, patch, width // (columns * patch), columns, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # [B, group row, group column, row, column, C, P, P]
    return x.reshape(batch, -1, channels * patch * patch)


def unpatchify(x: Tensor, *, patch: int, window: tuple[int, int], height: int, width: int) -> Tensor:
    """The inverse of `patchify`: x [B, N, C * patch * patch] -> [B, C, height, width]."""
    rows, columns = window
    x = x.view(x.shape[0], height // (rows * patch), width // (columns * patch), rows, columns, -1, patch, patch)
    x = x.permute(0, 5, 1, 3, 6, 2, 4, 7)  # [B, C, group row, row, P, group column, column, P]
    return x.reshape(x.shape[0], x.shape[1], height, width)


def with_zeros_between(x: Tensor, *, patch: int, count: int) -> Tensor:
    """Puts `count` patches of zeros after each patch of samples, to its right and below it.

    x [B, C, H, W] -> [B, C, (1 + count) * H, (1 + count) * W]
    """
    if not count:
        return x
    x = F.pad(torch.unflatten(x, 3, (-1, patch)), (0, count * patch)).flatten(3)
    return F.pad(torch.unflatten(x, 2, (-1, patch)), (0, 0, 0, count * patch)).flatten(2, 3)


def without_zeros_between(x: Tensor, *, patch: int, count: int) -> Tensor:
    """What `with_zeros_between` put zeros between: x [B, C, (1 + count) * H, (1 + count) * W] -> [B, C, H, W]."""
    step = (1 + count) * patch
    x = torch.unflatten(x, 3, (-1, step))[..., :patch].flatten(3)
    return torch.unflatten(x, 2, (-1, step))[:, :, :, :patch].flatten(2, 3)


def in_every_group(learned: Tensor, batch: int, num_groups: int) -> Tensor:
    """Learned vectors [L, D], the same in every group of every sample. -> [B, G * L, D]"""
    return learned.expand(batch, num_groups, *learned.shape).reshape(batch, num_groups * len(learned), -1)


def first_of_each_group(latents: Tensor, level: int, num_groups: int, dim: int = 1) -> Tensor:
    """The first `level` latents of each group, where dimension `dim` of a tensor goes over G * J. -> over G * L

    In memory of their own: at level 1 they would be a view with gaps, and what is compiled or written for a GPU takes
    that for another kind of input.
    """
    first = torch.unflatten(latents, dim, (num_groups, -1)).narrow(dim + 1, 0, level).flatten(dim, dim + 1)
    return first.contiguous()


def in_order(latents: Tensor, order: Tensor, num_groups: int, dim: int = 1) -> Tensor:
    """The latents of each group in this order [J], where dimension `dim` of a tensor goes over G * J."""
    return torch.unflatten(latents, dim, (num_groups, -1)).index_select(dim + 1, order).flatten(dim, dim + 1)


def with_first_replaced(latents: Tensor, first: Tensor, num_groups: int) -> Tensor:
    """Latents [B, G * J, D] whose first of each group are these, [B, G * L, D]. -> [B, G * J, D]"""
    first = torch.unflatten(first, 1, (num_groups, -1))
    rest = torch.unflatten(latents, 1, (num_groups, -1))[:, :, first.shape[2] :]
    return torch.cat([first, rest.to(first.dtype)], dim=2).flatten(1, 2)


class Read(nn.Module):
    """Latents read the spatial tokens of their group (equation 2), with adaLN-Zero modulation."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.context_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = GroupedCrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, ratio=1)
        self.modulation = nn.Linear(dim, 6 * dim)

    def gates(self) -> tuple[Tensor, Tensor]:
        """The gates of attention and MLP before anything is learned: views [D] of the modulation's bias."""
        _, _, gate1, _, _, gate2 = self.modulation.bias.chunk(6)
        return gate1, gate2

    def forward(
        self, latents: Tensor, tokens: Tensor, modulation: Tensor, rope: Tensor, token_rope: Tensor, num_groups: int
    ) -> Residual:
        """latents [B, G * L, D] read tokens [B, N, D] under `modulation(c)` [B, 6D]. -> a stream of latents"""
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        query = norm_modulate(latents, shift1, scale1)
        read = self.attention(query, self.context_norm(tokens), rope, token_rope, num_groups)
        latents, normed = settle_and_norm(Residual(latents, read, gate1), shift2, scale2)
        return Residual(latents, self.mlp(normed), gate2)


class Write(nn.Module):
    """Spatial tokens read the latents of their group; symmetric to Read, without modulation.

    Both output projections start at zero, so an untrained Write is the identity.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.context_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = GroupedCrossAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, ratio=1)
        self.zero_at_start = (self.attention.out, self.mlp.down)

    def forward(
        self,
        tokens: Tensor,
        placed: Tensor,
        latents: Tensor,
        token_rope: Tensor,
        rope: Tensor,
        num_groups: int,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """tokens [B, N, D], which ask as `placed` [B, N, D], read latents [B, G * L, D]. -> [B, N, D]

        mask: see `GroupedCrossAttention`.
        """
        asking, context = self.norm1(placed), self.context_norm(latents)
        tokens = tokens + self.attention(asking, context, token_rope, rope, num_groups, mask=mask)
        return tokens + self.mlp(self.norm2(tokens))


def with_latents_as_tokens(tokens: Tensor, latents: Tensor, places: Tensor, num_groups: int) -> Tensor:
    """Tokens [B, N, D] with latents [B, G * R, D] in the place of those that stand at `places` [R] of each group."""
    in_groups = torch.unflatten(latents, 1, (num_groups, -1)).to(tokens.dtype)
    return torch.unflatten(tokens, 1, (num_groups, -1)).index_copy(2, places, in_groups).flatten(1, 2)


class Latents(NamedTuple):
    """The latents of all groups before they read, R in each.

    learned: the vectors they start as [R, D], the same in every group. rope: where they stand [2, G * R, 1, E/2].
    positions: what tells them apart in the core where RoPE does not [G * R, D]. places: of the tokens that they carry,
    in their group [R] int64.
    """

    learned: Tensor
    rope: Tensor
    positions: Tensor | None
    places: Tensor | None

    def first(self, level: int, num_groups: int) -> Latents:
        """The first `level` of each group."""
        positions = None if self.positions is None else first_of_each_group(self.positions, level, num_groups, dim=0)
        places = None if self.places is None else self.places[:level]
        return Latents(self.learned[:level], first_of_each_group(self.rope, level, num_groups), positions, places)

    def in_order(self, order: Tensor, num_groups: int) -> Latents:
        """Those of each group in this order [R]."""
        positions = None if self.positions is None else in_order(self.positions, order, num_groups, dim=0)
        places = None if self.places is None else self.places[order]
        return Latents(self.learned[order], in_order(self.rope, order, num_groups), positions, places)


@dataclass(frozen=True, kw_only=True)
class LatentInterface:
    """Read, whatever core, and Write as one way through the latents.

    It holds no parameters: these are the parts of the backbone that asks, which has them under names of its own.

    latents: the learned vectors [J, D]. places: what tokens and latents that start as them have in common [J, D], in
        the order of a window's tokens; without it all latents start alike. core_positions: what tells latents apart in
        the core where RoPE does not [G * J, D]. reach: whether Read and Write work on `all` latents or on the `prefix`
        that the core keeps. carries: whether each latent starts as the token of its place, learned vector added, and is
        that token again behind the core. A fresh interface then changes nothing: at the full level its model is a plain
        one of the same blocks.
    """

    read: Read
    write: Write
    latents: Tensor
    places: Tensor | None
    core_positions: Tensor | None
    reach: str
    carries: bool = False

    def start(self, window: tuple[int, int]) -> None:
        """Each latent starts as one token of its group: Read's query j finds the key of its place, and Write's query of
        a token the key of its latent, because queries and keys are projected alike. Read is open from the start: behind
        closed gates, before a Write that is zero, it would learn nothing until both have opened. What carries tokens
        learns behind closed gates too, and begins with vectors of zero.

        On the meta device there is nothing to start, and for the index torch would import its compiler: 0.4 s."""
        if self.places is None or self.places.is_meta:
            return
        with torch.no_grad():
            nn.init.normal_(self.places)
            for attention in (self.read.attention, self.write.attention):
                attention.kv.weight[: self.latents.shape[1]] = attention.q.weight
            if self.carries:
                nn.init.zeros_(self.latents)
                if self.core_positions is not None:
                    nn.init.zeros_(self.core_positions)
                return
            self.latents.copy_(self.places[spread_places(window)])
            for gate in self.read.gates():
                gate.fill_(1)

    def positions(self, of_tokens: Tensor, window: tuple[int, int]) -> Tensor:
        """Where latents stand among tokens at positions [N, 2]. -> [G, J, 2]"""
        stand = group_centres if self.places is None else latent_places
        return stand(of_tokens, window)

    def through(
        self,
        core: Core,
        tokens: Tensor,
        modulation: Tensor,
        level: int,
        *,
        num_groups: int,
        token_rope: Tensor,
        latent_rope: Tensor,
        latent_tokens: Tensor | None = None,
        order: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """Read, core on the first `level` latents of each group, Write: tokens [B, N, D] -> [B, N, D].

        modulation [B, 6D] is Read's. latent_rope is that of all latents [2, G * J, 1, E/2], latent_tokens the places of
        the tokens that they carry [J] int64. With an order [J] the first latents are the first of that. kept: where
        samples keep different ones of the first latents.
        """
        assert (latent_tokens is not None) == self.carries
        latents = Latents(self.latents, latent_rope, self.core_positions, latent_tokens)
        if order is not None:
            latents = latents.in_order(order, num_groups)
        if self.reach == "prefix":
            latents = latents.first(level, num_groups)
        learned, rope, positions, places = latents
        placed = tokens if self.places is None else tokens + in_every_group(self.places, 1, num_groups).to(tokens.dtype)
        start = in_every_group(learned, len(tokens), num_groups)  # [B, G * R, D], R is level or J
        if places is not None:
            start = start.to(tokens.dtype) + in_order(tokens, places, num_groups)
        z: Tensor | Residual = self.read(start, placed, modulation, rope, token_rope, num_groups)
        if positions is not None:
            z = settled(z) + positions
        if level == len(learned):
            z = core(z, rope)
        else:
            whole = settled(z)
            first = first_of_each_group(whole, level, num_groups)  # [B, G * L, D]
            first = core(first, first_of_each_group(rope, level, num_groups))
            z = with_first_replaced(whole, first, num_groups)
        if places is not None:
            tokens = with_latents_as_tokens(tokens, z, places, num_groups)
        mask = kept.mask_in_groups(z.dtype) if kept is not None and self.reach == "prefix" else None
        return self.write(tokens, placed, z, token_rope, rope, num_groups, mask=mask)  # [B, N, D]
