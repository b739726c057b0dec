"""Who attends to whom: attention probabilities, recomputed in float32 beside a forward pass that stays as it is.

A hook sees the inputs of an attention module and repeats its first half, softmax(q k^T / sqrt(E)); the fused attention
of the model never forms these probabilities. Knows models as tensors in and out, and no pictures or files.

Letters: B batch, N spatial tokens, G groups, W tokens in a window, L latents kept per group, H heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elit_serve.errors import InvalidInput
from elit_serve.nn import Backbone
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.fused import norm_rotate
from elit_serve.nn.interface import patchify
from elit_serve.nn.layers import GroupedCrossAttention, SelfAttention


def self_probabilities(attention: SelfAttention, x: Tensor, rope: Tensor) -> Tensor:
    """What each token of x [B, N, D] attends to, under RoPE tables [2, N, 1, E / 2]. -> [B, H, N, N]"""
    batch, tokens, _ = x.shape
    qkv = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, -1)  # [B, N, 3, H, E]
    q, k = norm_rotate(qkv[:, :, :2], (attention.q_norm.weight, attention.k_norm.weight), rope)  # [B, N, H, E]
    return _probabilities(q.transpose(1, 2), k.transpose(1, 2))


def grouped_probabilities(
    attention: GroupedCrossAttention, x: Tensor, context: Tensor, rope: Tensor, context_rope: Tensor, num_groups: int
) -> Tensor:
    """What each query of x [B, G * L, D] reads of its group's part of context [B, G * W, D]. -> [B, G, H, L, W]"""
    q = attention.q(x).view(*x.shape[:2], 1, attention.num_heads, -1)  # [B, G * L, 1, H, E]
    kv = attention.kv(context).view(*context.shape[:2], 2, attention.num_heads, -1)  # [B, G * W, 2, H, E]
    (q,) = norm_rotate(q, (attention.q_norm.weight,), rope)
    (k,) = norm_rotate(kv[:, :, :1], (attention.k_norm.weight,), context_rope)
    q, k = (part.view(len(x), num_groups, -1, *part.shape[2:]).transpose(2, 3) for part in (q, k))  # [B, G, H, ., E]
    return _probabilities(q, k)


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) in float32: q [..., L, E], k [..., W, E] -> [..., L, W]."""
    scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1)


@torch.inference_mode()
def read_probabilities(model: Backbone, x: Tensor, t: Tensor, condition: Tensor, level: int) -> Tensor:
    """What the latents read in one forward pass at x [B, C, H, W], t [B], condition [B, ...]. -> [B, G, H, L, W]

    The model must have a `latent_reader`.
    """
    seen: list[Tensor] = []
    attention = model.latent_reader()
    assert attention is not None, model.spec.kind
    with _observed(attention, lambda *inputs: seen.append(grouped_probabilities(attention, *inputs))):
        model(x, t, condition, level)
    (probabilities,) = seen
    return probabilities


@dataclass(frozen=True, kw_only=True)
class ReadShares:
    """How much of the latents' attention goes to some of the tokens, for each group.

    share: [G], the attention mass on them, averaged over samples, heads and latents. area: [G], their part of the
    group's tokens, which is the share that uniform attention would give.
    """

    share: Tensor
    area: Tensor

    @property
    def mixed(self) -> tuple[float, float]:
        """Mean share and mean area of the groups that have a choice; NaN where no group holds both kinds."""
        has_choice = (self.area > 0) & (self.area < 1)
        return float(self.share[has_choice].mean()), float(self.area[has_choice].mean())


def read_shares(model: Backbone, x: Tensor, t: Tensor, condition: Tensor, level: int, *, keys: Tensor) -> ReadShares:
    """Share of Read's attention on the tokens marked in `keys`, a mask [N], group by group as `token_mask` gives."""
    _check_mask("keys", keys, x, model)
    probabilities = read_probabilities(model, x, t, condition, level)  # [B, G, H, L, W]
    marked = keys.to(probabilities).view(probabilities.shape[1], -1)  # [G, W]
    share = torch.einsum("bghlw,gw->g", probabilities, marked) / probabilities[:, 0, :, :, 0].numel()
    return ReadShares(share=share.cpu(), area=marked.mean(dim=1).cpu())


@torch.inference_mode()
def self_attention_shares(
    model: Backbone, x: Tensor, t: Tensor, condition: Tensor, *, queries: Tensor, keys: Tensor, level: int = 1
) -> tuple[float, ...]:
    """For each block over spatial tokens, the share of their attention that some tokens give to others.

    queries, keys: masks [N] as `token_mask` gives; uniform attention would give keys.float().mean(). The blocks are
    the model's `spatial_blocks`, in order. A share is the mean over samples and heads of
    x [B, C, H, W] at t [B], condition [B, ...]; each block takes B * H * N * N floats for a moment.
    """
    for name, mask in (("queries", queries), ("keys", keys)):
        _check_mask(name, mask, x, model)
    if not bool(queries.any()):
        raise InvalidInput("queries", "no token", "at least one token that attends")
    shares: list[float] = []

    def share_of(attention: SelfAttention) -> Callable[..., None]:
        def observe(tokens: Tensor, rope: Tensor) -> None:
            given = self_probabilities(attention, tokens, rope)[:, :, queries.to(tokens.device)]  # [B, H, Q, N]
            shares.append(float(given[..., keys.to(tokens.device)].sum(dim=-1).mean()))

        return observe

    with ExitStack() as stack:
        for block in model.spatial_blocks():
            stack.enter_context(_observed(block.attention, share_of(block.attention)))
        model(x, t, condition, level)
    return tuple(shares)


def token_mask(spec: TransformerSpec, mask: Tensor, *, marks_padding: bool = False) -> Tensor:
    """Tokens whose whole patch is marked: mask [H, W] over the sample -> [N], in the order of the model's tokens.

    marks_padding: whether the model's own padding around the sample counts as marked.
    """
    spec.check_size(*mask.shape)
    padded = F.pad(mask.float(), (spec.padding,) * 4, value=float(marks_padding))
    return patchify(padded[None, None], patch=spec.patch, window=spec.window)[0].bool().all(dim=-1)


def _check_mask(name: str, mask: Tensor, x: Tensor, model: Backbone) -> None:
    assert isinstance(model.spec, TransformerSpec), model.spec.kind
    num_tokens = math.prod(model.spec.token_grid(*x.shape[2:]))
    if mask.dtype != torch.bool or tuple(mask.shape) != (num_tokens,):
        raise InvalidInput(
            name, f"{mask.dtype} of shape {tuple(mask.shape)}", f"a bool for each of {num_tokens} tokens"
        )


@contextmanager
def _observed(module: nn.Module, observe: Callable[..., None]) -> Iterator[None]:
    """Inside, `observe` is called with the inputs of `module` before it runs on them."""

    def before(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        observe(*inputs)

    handle = module.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
