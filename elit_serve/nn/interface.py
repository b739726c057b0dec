"""The latent interface of ELIT (paper, section 3.3): group, Read, prefix, Write.

Letters: B batch, N spatial tokens, G groups, W tokens in a window, J latents per group (J = W), L the
level J̃ <= J (latents kept per group), D width. Spatial tokens are laid out group by group: token
g * W + i is the i-th of group g, and latent g * L + j is the j-th of group g.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from elit_serve.nn.fused import Residual, norm_modulate, settle_and_norm
from elit_serve.nn.layers import GroupedCrossAttention, Mlp


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


def group_centres(positions: Tensor, latents_per_group: int) -> Tensor:
    """The centre of each group: positions [N, 2] -> [G, 2]."""
    return positions.view(-1, latents_per_group, 2).mean(dim=1)


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


def latent_rope(group_rope: Tensor, level: int) -> Tensor:
    """All latents of a group carry the group's phase: [2, G, 1, E / 2] -> [2, G * L, 1, E / 2]."""
    two, groups, one, half = group_rope.shape
    return group_rope.unsqueeze(2).expand(two, groups, level, one, half).reshape(two, groups * level, one, half)


def initial_latents(latents: Tensor, level: int, batch: int, num_groups: int) -> Tensor:
    """The first `level` of the learned latents [J, D], the same in every group. -> [B, G * L, D]"""
    prefix = latents[:level]
    return prefix.expand(batch, num_groups, *prefix.shape).reshape(batch, num_groups * level, -1)


class Read(nn.Module):
    """Latents read the spatial tokens of their group (equation 2), with adaLN-Zero modulation."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.context_norm = nn.LayerNorm(dim, eps=1e-6)
        self.attention = GroupedCrossAttention(dim, num_heads)
        self.mlp = Mlp(dim, ratio=1)
        self.modulation = nn.Linear(dim, 6 * dim)

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

    def forward(self, tokens: Tensor, latents: Tensor, token_rope: Tensor, rope: Tensor, num_groups: int) -> Tensor:
        """tokens [B, N, D] read latents [B, G * L, D]. -> [B, N, D]"""
        written = self.attention(self.norm1(tokens), self.context_norm(latents), token_rope, rope, num_groups)
        tokens = tokens + written
        return tokens + self.mlp(self.norm2(tokens))
