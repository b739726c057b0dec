"""Who attends to whom: attention probabilities, recomputed in float32 beside a forward pass that stays as it is.

A hook sees the inputs of an attention module and repeats its first half, softmax(q k^T / sqrt(E)); the fused attention
of the model never forms these probabilities.

Letters: B batch, N spatial tokens, G groups, W tokens in a window, L latents of a group, H heads, E head size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from elit_serve.nn.layers import GroupedCrossAttention, SelfAttention

NOTHING: Mapping[Any, Any] = MappingProxyType({})


def self_probabilities(attention: SelfAttention, x: Tensor, rope: Tensor) -> Tensor:
    """What each token of x [B, N, D] attends to, under RoPE tables [2, N, 1, E / 2]. -> [B, H, N, N]"""
    q, k, _ = attention.project(x, rope)  # [B, H, N, E]
    return _probabilities(q, k)


def grouped_probabilities(
    attention: GroupedCrossAttention,
    x: Tensor,
    context: Tensor,
    rope: Tensor | None,
    context_rope: Tensor | None,
    num_groups: int,
) -> Tensor:
    """What each query of x [B, G * L, D] reads of its group's part of context [B, G * W, D]. -> [B, G, H, L, W]"""
    q, k, _ = attention.project(x, context, rope, context_rope, num_groups)
    return _probabilities(torch.unflatten(q, 0, (-1, num_groups)), torch.unflatten(k, 0, (-1, num_groups)))


def _probabilities(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) in float32, under autocast too: q [..., L, E], k [..., W, E] -> [..., L, W]."""
    with torch.autocast(q.device.type, enabled=False):
        scores = q.float() @ k.float().transpose(-2, -1) / math.sqrt(q.shape[-1])
        return scores.softmax(dim=-1)


@contextmanager
def observed(
    *, inputs: Mapping[nn.Module, Callable[..., None]], outputs: Mapping[nn.Module, Callable[[Any], None]] = NOTHING
) -> Iterator[None]:
    """Inside, each of these functions is called with the inputs of its module before it runs, or with what it made.

    Compiled modules run uncompiled inside: a compiled one would be compiled again for the hooks, and training with it.
    """

    def before(module: nn.Module, given: tuple[Any, ...]) -> None:
        inputs[module](*given)

    def after(module: nn.Module, _: tuple[Any, ...], made: Any) -> None:
        outputs[module](made)

    handles = [module.register_forward_pre_hook(before) for module in inputs]
    handles += [module.register_forward_hook(after) for module in outputs]
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for handle in handles:
            handle.remove()
