"""The elementwise work between the matrix products of a block: one pass over memory for each, where there is a GPU.

Every function has two forms that compute the same: plain torch, which training and CPUs use (and torch.compile fuses),
and a Triton kernel for inference on a GPU. On an NVIDIA H200 these passes took a third of a step when torch.compile
made them (models/recipes/devices.md).

What a product in float8 reads (`quantized`) is written as float8 by the pass that makes it: on its own the conversion
would be a pass over memory that costs half of what the product gains.

Letters: B batch, N tokens, T words (tokens of a text), D width, H heads, E head size, M the number of head groups to
normalise (q, or q and k).
Of autoencoders' activations C channels, and P, their height and width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import lru_cache
from textwrap import shorten
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

logger = logging.getLogger(__name__)

EPS = 1e-6
FP8 = torch.float8_e4m3fn  # 4 bits of exponent, 3 of mantissa
FP8_MAX = torch.finfo(FP8).max  # 448


def takes_fp8(linear: nn.Linear) -> bool:
    """Whether this layer's input should be float8: as its weight is."""
    return linear.weight.dtype == FP8


def to_fp8(x: Tensor) -> Tensor:
    """x in float8, saturating at +-448; any shape."""
    if kernels := _kernels(x):
        return kernels.convert(x, FP8)
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, *, fp8: bool = False) -> Tensor:
    """Layer norm, then adaLN (DiT, section 3.2): x [B, N, D], shift and scale [B, D] -> [B, N, D], float8 if asked."""
    if kernels := _kernels(x):
        return kernels.norm_modulate(x, shift, scale, EPS, FP8 if fp8 else x.dtype)
    out = _modulate(F.layer_norm(x, x.shape[-1:], eps=EPS), shift, scale)
    return to_fp8(out) if fp8 else out


class Residual(NamedTuple):
    """A residual stream whose last update is not added yet: x + gate * update.

    x and update [B, N, D], gate [B, D]. Whoever comes next adds it in the same pass over memory as its own norm.
    """

    x: Tensor
    update: Tensor
    gate: Tensor

    def settled(self) -> Tensor:
        """The sum. [B, N, D]"""
        if kernels := _kernels(self.x):
            return kernels.gated_add(self.x, self.update, self.gate)
        return self.x + self.gate.unsqueeze(1) * self.update


def settle_and_norm(
    residual: Tensor | Residual, shift: Tensor, scale: Tensor, *, fp8: bool = False
) -> tuple[Tensor, Tensor]:
    """A residual stream with its last update added, and the `norm_modulate` of that: both [B, N, D]."""
    if not isinstance(residual, Residual):
        return residual, norm_modulate(residual, shift, scale, fp8=fp8)
    if kernels := _kernels(residual.x):
        return kernels.gated_add_norm_modulate(*residual, shift, scale, EPS, FP8 if fp8 else residual.x.dtype)
    x = residual.settled()
    return x, norm_modulate(x, shift, scale, fp8=fp8)


def norm_rotate(x: Tensor, weights: Sequence[Tensor], rope: Tensor, *, pairs: bool = False) -> tuple[Tensor, ...]:
    """RMS norm of each head, then 2D RoPE: x [B, N, M, H, E], a weight [E] for each of M -> M times [B, N, H, E].

    rope is [2, N, 1, E / 2]; see `rotate` and, for `pairs`, `rotate_pairs`. The kernel works in place, so the caller
    must not need x afterwards.
    """
    if kernels := _kernels(x):
        return kernels.norm_rotate(x, weights, rope, EPS, pairs=pairs).unbind(2)
    turn = rotate_pairs if pairs else rotate
    return tuple(
        turn(F.rms_norm(part, part.shape[-1:], weight.to(part.dtype), EPS), rope)
        for part, weight in zip(x.unbind(2), weights, strict=True)
    )


def attend_with_words(
    q: Tensor, k: Tensor, v: Tensor, words_k: Tensor, words_v: Tensor, seen: Tensor, seen_tokens: Tensor | None = None
) -> Tensor:
    """Attention to words and tokens: q, k, v [B, H, N, E], words_k and words_v [B, H, T, E] -> [B, H, N, E].

    seen [B, 1, 1, T] is added to scores of words, and seen_tokens [B, 1, 1, N] to those of tokens, if not all are seen.
    With kernels the tokens are attended to without a mask, which takes less than half of the time on an NVIDIA H200,
    and words are put to that by another kernel, which needs no copy of all keys and values in one tensor.
    """
    kernels = _kernels(q) if seen_tokens is None else None
    if kernels and kernels.takes_head(q.shape[-1]) and (known := _attended(q, k, v)):
        return kernels.attend_to_words(*known, q, words_k, words_v, seen)
    mask = F.pad(seen, (0, k.shape[2])) if seen_tokens is None else torch.cat([seen, seen_tokens], dim=-1)
    every_k, every_v = torch.cat([words_k, k], dim=2), torch.cat([words_v, v], dim=2)
    return F.scaled_dot_product_attention(q, every_k, every_v, attn_mask=mask)


def _attended(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor] | None:
    """What attention makes [B, H, N, E], and the logarithm of what its weights are over [B, H, N]: torch says the
    second by two operators alone. None where neither knows these tensors."""
    params = torch.backends.cuda.SDPAParams(q, k, v, None, 0.0, False, False)
    if torch.backends.cuda.can_use_cudnn_attention(params):
        made, sums, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    elif torch.backends.cuda.can_use_flash_attention(params):
        made, sums, *_ = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    else:
        return None
    return made, sums.reshape(q.shape[:3])


def linear_gelu(x: Tensor, linear: nn.Linear) -> Tensor:
    """tanh-GELU of a linear layer: x [B, N, D] -> [B, N, out]; on a GPU a part of the product."""
    if _kernels(x):
        flat = torch._addmm_activation(linear.bias, x.flatten(0, 1), linear.weight.t(), use_gelu=True)
        return flat.view(*x.shape[:2], -1)
    return F.gelu(linear(x), approximate="tanh")


def gelu_times(x: Tensor, factor: Tensor) -> Tensor:
    """tanh-GELU of x, times a factor: both [B, N, D] -> [B, N, D]."""
    if kernels := _kernels(x):
        return kernels.gelu_times(x, factor)
    return F.gelu(x, approximate="tanh") * factor


def gelu_fp8(x: Tensor) -> Tensor:
    """tanh-GELU in float8 [B, N, D], for products in float8, which torch has with no GELU inside."""
    if kernels := _kernels(x):
        return kernels.gelu(x, FP8)
    return to_fp8(F.gelu(x, approximate="tanh"))


def group_norm_silu(x: Tensor, norm: nn.GroupNorm, bias: Tensor | None = None) -> Tensor:
    """SiLU of the group norm of x + bias: x [B, C, *P], bias [C] -> [B, C, *P]. The kernel takes and gives channels
    last, as convolutions on a GPU want them; torch's own norm there takes and gives them first."""
    groups, weight, shift, eps = norm.num_groups, norm.weight, norm.bias, norm.eps
    if (kernels := _kernels(x)) and kernels.takes_groups(x.shape[1], groups):
        return kernels.group_norm_silu(x, bias, groups, weight, shift, eps)
    return F.silu(F.group_norm(x if bias is None else x + bias.view(-1, 1, 1), groups, weight, shift, eps))


def add_biased(x: Tensor, update: Tensor, bias: Tensor) -> Tensor:
    """x + update + bias: x and update [B, C, *P], bias [C] -> [B, C, *P]; the kernel's is channels last."""
    if (kernels := _kernels(x)) and kernels.takes_groups(x.shape[1], 1):
        return kernels.add_biased(x, update, bias)
    return x + (update + bias.view(-1, 1, 1))


def doubled(x: Tensor) -> Tensor:
    """Each pixel four times: [B, C, H, W] -> [B, C, 2 H, 2 W]; the kernel's is channels last."""
    if (kernels := _kernels(x)) and kernels.takes_groups(x.shape[1], 1):
        return kernels.doubled(x)
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """RoPE of the halves of a head: x [B, N, H, E], rope [2, N, 1, E / 2] -> [B, N, H, E] in x's dtype."""
    cos, sin = rope.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


def rotate_pairs(x: Tensor, rope: Tensor) -> Tensor:
    """RoPE of numbers next to each other, in float32: x [B, N, H, E], rope [2, N, 1, E / 2] -> [B, N, H, E]."""
    cos, sin = rope
    first, second = torch.unflatten(x.float(), -1, (-1, 2)).unbind(-1)
    turned = torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _kernels(x: Tensor) -> ModuleType | None:
    """The Triton kernels, where they may be used: on a GPU, for inference in one dtype, outside torch.compile."""
    if not x.is_cuda or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda") or torch.compiler.is_compiling():
        return None
    return working_kernels(x.device)


@lru_cache(maxsize=16)
def working_kernels(device: torch.device) -> ModuleType | None:
    """The Triton kernels if one of them runs on this device, found out once.

    Triton compiles what launches a kernel, so without a C compiler none does; plain torch takes their place.
    """
    try:
        from elit_serve.nn import kernels

        kernels.convert(torch.zeros(1, device=device), torch.float16)
    except Exception as error:  # of Triton, the compiler, the driver
        reason = shorten(str(error), 160, placeholder=" ...")
        logger.warning("no Triton kernel runs on %s, so slower ones of torch do their work: %s", device, reason)
        return None
    return kernels
