"""Transformer parts shared by every backbone.

Letters: B batch, N tokens (or K tokens of another sequence), D width, H heads, E = D / H head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.nn.fused import Residual, gelu_fp8, linear_gelu, norm_rotate, settle_and_norm, takes_fp8

ROPE_THETA = 10_000.0


def rope_table(positions: Tensor, head_size: int) -> Tensor:
    """Cosines and sines of 2D RoPE, half of the head for rows and half for columns.

    positions [N, 2] in units of tokens -> [2, N, 1, E / 2], float32; index 0 is cos, 1 is sin.
    """
    num_freqs = head_size // 4
    freqs = ROPE_THETA ** (-torch.arange(num_freqs, dtype=torch.float64, device=positions.device) / num_freqs)
    angles = (positions.double().unsqueeze(-1) * freqs).flatten(1)  # [N, 2, E/4] -> [N, E/2]
    return torch.stack([angles.cos(), angles.sin()]).float().unsqueeze(2)


class TimestepEmbedder(nn.Module):
    """t in [0, 1] -> [B, D]: sinusoids of 1000 t, then a two-layer MLP (as DiT)."""

    def phase(self, t: Tensor) -> Tensor:
        """What the slowest sinusoid is of, for t [B]; the others turn slower still, down to 1 / 10,000 of it."""
        return 1000 * t.float()

    def __init__(self, dim: int, num_freqs: int = 128) -> None:
        super().__init__()
        self.num_freqs = num_freqs
        self.up = nn.Linear(2 * num_freqs, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, t: Tensor) -> Tensor:
        steps = torch.arange(self.num_freqs, dtype=torch.float32, device=t.device)
        freqs = torch.exp(-math.log(10_000) * steps / self.num_freqs)
        angles = self.phase(t).unsqueeze(1) * freqs  # [B, F]
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)  # [B, 2F]
        return self.out(F.silu(self.up(waves.to(self.up.weight.dtype))))  # [B, D]


class Mlp(nn.Module):
    """Two layers around a tanh-GELU, the hidden one `ratio` times as wide."""

    def __init__(self, dim: int, ratio: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, ratio * dim)
        self.down = nn.Linear(ratio * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        hidden = gelu_fp8(self.up(x)) if takes_fp8(self.down) else linear_gelu(x, self.up)
        return self.down(hidden)


class HeadNorm(nn.Module):
    """The weight [E] of QK normalisation, an RMS norm of each head that `fused.norm_rotate` applies; or [D], of an RMS
    norm over all heads together."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(E) + mask) v: q [B, H, N, E], k and v [B, H, K, E], mask [B, 1, 1, K] -> [B, H, N, E]."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class SelfAttention(nn.Module):
    """Multi-head self-attention with QK normalisation and RoPE, or `plain` with neither: x [B, N, D] -> [B, N, D]."""

    def __init__(self, dim: int, num_heads: int, *, plain: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm = None if plain else HeadNorm(dim // num_heads)
        self.k_norm = None if plain else HeadNorm(dim // num_heads)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rope: Tensor, *, mask: Tensor | None = None) -> Tensor:
        """mask: what is added to scores, [B, 1, 1, N] for all queries alike."""
        y = attend(*self.project(x, rope), mask)  # [B, H, N, E]
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def project(self, x: Tensor, rope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [B, N, D], each [B, H, N, E]; where it is plain rope changes nothing."""
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, -1)  # [B, N, 3, H, E]
        q, k, v = qkv.unbind(2)  # [B, N, H, E] each
        if self.q_norm is not None and self.k_norm is not None:
            q, k = norm_rotate(qkv[:, :, :2], (self.q_norm.weight, self.k_norm.weight), rope)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class GroupedCrossAttention(nn.Module):
    """Cross-attention inside groups: queries of a group see the keys of that group only (paper, section 3.3).

    Both sequences are laid out group by group, so folding groups into the batch is a reshape.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.q_norm = HeadNorm(dim // num_heads)
        self.k_norm = HeadNorm(dim // num_heads)
        self.out = nn.Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        rope: Tensor | None,
        context_rope: Tensor | None,
        num_groups: int,
        *,
        mask: Tensor | None = None,
    ) -> Tensor:
        """x [B, N, D] reads context [B, K, D]; N and K are multiples of num_groups. -> [B, N, D]

        mask: what is added to scores, [B * G, 1, 1, K / G] for all queries of a group alike.
        """
        q, k, v = self.project(x, context, rope, context_rope, num_groups)
        y = attend(q, k, v, mask)  # [B * G, H, N / G, E]
        return self.out(y.transpose(1, 2).reshape(x.shape))

    def project(
        self, x: Tensor, context: Tensor, rope: Tensor | None, context_rope: Tensor | None, num_groups: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B * G, H, N / G, E], and keys and values [B * G, H, K / G, E]."""
        assert rope is not None
        assert context_rope is not None
        q = self.q(x).view(*x.shape[:2], 1, self.num_heads, -1)  # [B, N, 1, H, E]
        kv = self.kv(context).view(*context.shape[:2], 2, self.num_heads, -1)  # [B, K, 2, H, E]
        (q,) = norm_rotate(q, (self.q_norm.weight,), rope)  # [B, N, H, E]
        (k,) = norm_rotate(kv[:, :, :1], (self.k_norm.weight,), context_rope)  # [B, K, H, E]
        return self.fold(q, num_groups), self.fold(k, num_groups), self.fold(kv[:, :, 1], num_groups)

    @staticmethod
    def fold(x: Tensor, num_groups: int) -> Tensor:
        """Groups into the batch: x [B, N, H, E] -> [B * G, H, N / G, E]."""
        batch, tokens, heads, size = x.shape
        return x.reshape(batch * num_groups, tokens // num_groups, heads, size).transpose(1, 2)


class Block(nn.Module):
    """A DiT block with adaLN-Zero: a residual stream and its `modulation(c)` [B, 6D] -> the residual stream.

    c is [B, D] too, unless it is said to have another width. plain: its attention has neither QK normalisation nor
    RoPE, whatever it is given. mask: see `SelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: int = 4,
        *,
        condition_dim: int | None = None,
        plain: bool = False,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(dim, num_heads, plain=plain)
        self.mlp = Mlp(dim, mlp_ratio)
        self.modulation = nn.Linear(condition_dim or dim, 6 * dim)

    def forward(
        self, residual: Tensor | Residual, modulation: Tensor, rope: Tensor, *, mask: Tensor | None = None
    ) -> Residual:
        x, normed = self.before_attention(residual, modulation)  # [B, N, D] each
        return self.behind_attention(x, self.attention(normed, rope, mask=mask), modulation)

    def before_attention(self, residual: Tensor | Residual, modulation: Tensor) -> tuple[Tensor, Tensor]:
        """The residual stream, and what attention is to be given: both [B, N, D]."""
        shift, scale, *_ = modulation.chunk(6, dim=-1)
        return settle_and_norm(residual, shift, scale, fp8=takes_fp8(self.attention.qkv))

    def behind_attention(self, x: Tensor, attended: Tensor, modulation: Tensor) -> Residual:
        """The residual stream x [B, N, D] and what attention made for it [B, N, D] -> the residual stream."""
        _, _, gate1, shift2, scale2, gate2 = modulation.chunk(6, dim=-1)
        x, normed = settle_and_norm(Residual(x, attended, gate1), shift2, scale2, fp8=takes_fp8(self.mlp.up))
        return Residual(x, self.mlp(normed), gate2)


class FinalLayer(nn.Module):
    """Tokens to patches of velocity: a residual stream and `modulation(c)` [B, 2D] -> [B, N, out]."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(dim, 2 * dim)
        self.linear = nn.Linear(dim, out)

    def forward(self, residual: Tensor | Residual, modulation: Tensor) -> Tensor:
        shift, scale = modulation.chunk(2, dim=-1)
        _, normed = settle_and_norm(residual, shift, scale)
        return self.linear(normed)


AnyBlock = Callable[..., Any]  # a block, or one with some of its arguments given


def run(
    blocks: Iterable[AnyBlock], stream: Tensor | Residual, modulations: Iterator[Tensor], rope: Tensor
) -> Tensor | Residual:
    """A residual stream through blocks, one after another; each takes the next modulation [B, 6D]."""
    for block in blocks:
        stream = block(stream, next(modulations), rope)
    return stream


def settled(residual: Tensor | Residual) -> Tensor:
    """The residual stream as one tensor. [B, N, D]"""
    return residual.settled() if isinstance(residual, Residual) else residual


def initialise(model: nn.Module) -> None:
    """Xavier for linear layers, N(0, 0.02) for embeddings, latents, positions and the null text, zero for what must
    start so.

    Zeroed are the adaLN projections, the final layer, and every module that lists itself in
    `zero_at_start`, a tuple of its own linear layers (Write's output projections).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        for name in ("latents", "places", "positions", "core_positions", "null_text"):
            if isinstance(learned := getattr(module, name, None), nn.Parameter):
                nn.init.normal_(learned, std=0.02)
    for module in model.modules():
        zeroed = [getattr(module, "modulation", None), *getattr(module, "zero_at_start", ())]
        if isinstance(module, FinalLayer):
            zeroed.append(module.linear)
        for linear in zeroed:
            if linear is not None:
                nn.init.zeros_(linear.weight)
                nn.init.zeros_(linear.bias)
