"""How much attention some of the tokens get: in Read, and in the blocks over spatial tokens.

Knows models as tensors in and out, and no pictures or files; `nn.attention` recomputes the probabilities.

Letters: B batch, N spatial tokens, G groups, W tokens in a window, R latents that Read makes of a group, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.nn import Backbone
from elit_serve.nn.attention import observed, self_probabilities
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.interface import patchify, with_zeros_between
from elit_serve.nn.latents import watch_latents
from elit_serve.nn.layers import SelfAttention


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
    reads = watch_latents(model, x, t, condition, level).reads  # [B, G, R, W]
    marked = keys.to(reads).view(reads.shape[1], -1)  # [G, W]
    share = torch.einsum("bgrw,gw->g", reads, marked) / reads[:, 0, :, 0].numel()
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

    attentions = [block.attention for block in model.spatial_blocks()]
    with observed(inputs={attention: share_of(attention) for attention in attentions}):
        model(x, t, condition, level)
    return tuple(shares)


def token_mask(spec: TransformerSpec, mask: Tensor) -> Tensor:
    """Tokens whose whole patch is marked: mask [H, W] over the sample -> [N], in the order of the model's tokens.

    The zeros that the model puts between patches are no part of the sample, so none of them is marked.
    """
    spec.check_size(*mask.shape)
    marked = with_zeros_between(mask.float()[None, None], patch=spec.patch, count=spec.zeros_between)
    return patchify(marked, patch=spec.patch, window=spec.window)[0].bool().all(dim=-1)


def zero_tokens(spec: TransformerSpec, height: int, width: int) -> Tensor:
    """The zeros that the model puts between the patches of a sample of this size: a mask [N] as `token_mask` gives."""
    return ~token_mask(spec, torch.ones(height, width, dtype=torch.bool))


def _check_mask(name: str, mask: Tensor, x: Tensor, model: Backbone) -> None:
    assert isinstance(model.spec, TransformerSpec), model.spec.kind
    num_tokens = math.prod(model.spec.token_grid(*x.shape[2:]))
    if mask.dtype != torch.bool or tuple(mask.shape) != (num_tokens,):
        raise InvalidInput(
            name, f"{mask.dtype} of shape {tuple(mask.shape)}", f"a bool for each of {num_tokens} tokens"
        )
