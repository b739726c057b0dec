"""Triton kernels of `fused`: one program per token, everything in float32 inside, one pass over memory.

Letters as in `fused`. Rows are tokens: B * N of them, D contiguous elements each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 2  # measured on an NVIDIA H200 at D = 1152: 7 % faster than 4
HEAD_WARPS = 1
ELEMENTS = 4096  # of a program that knows no rows; other sizes and warps are up to 15 % slower on an NVIDIA H200
ELEMENTS_WARPS = 4


def norm_modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype) -> Tensor:
    """See `fused.norm_modulate`."""
    x = x.contiguous()
    out = torch.empty_like(x, dtype=out_dtype)
    _norm_modulate[_rows(x)](
        x, x, shift, shift, scale, x, out, x.shape[1], 0, shift.stride(0), x.shape[2], eps,
        BLOCK=triton.next_power_of_2(x.shape[2]), ADDS=False, NORMS=True, num_warps=WARPS,
    )  # fmt: skip
    return out


def gated_add(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """See `fused.Residual`."""
    x, update = x.contiguous(), update.contiguous()
    total = torch.empty_like(x)
    _norm_modulate[_rows(x)](
        x, update, gate, gate, gate, total, total, x.shape[1], gate.stride(0), 0, x.shape[2], 0.0,
        BLOCK=triton.next_power_of_2(x.shape[2]), ADDS=True, NORMS=False, num_warps=WARPS,
    )  # fmt: skip
    return total


def gated_add_norm_modulate(
    x: Tensor, update: Tensor, gate: Tensor, shift: Tensor, scale: Tensor, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """See `fused.settle_and_norm`; shift and scale share one stride, as chunks of one tensor do."""
    assert shift.stride(0) == scale.stride(0)
    x, update = x.contiguous(), update.contiguous()
    total, out = torch.empty_like(x), torch.empty_like(x, dtype=out_dtype)
    _norm_modulate[_rows(x)](
        x, update, gate, shift, scale, total, out, x.shape[1], gate.stride(0), shift.stride(0), x.shape[2], eps,
        BLOCK=triton.next_power_of_2(x.shape[2]), ADDS=True, NORMS=True, num_warps=WARPS,
    )  # fmt: skip
    return total, out


def norm_rotate(x: Tensor, weights: Sequence[Tensor], rope: Tensor, eps: float) -> Tensor:
    """See `fused.norm_rotate`. x may be a slice of a wider tensor along M; its last two dimensions are contiguous."""
    batch, tokens, parts, heads, size = x.shape
    assert x.stride()[2:] == (heads * size, size, 1), x.stride()
    assert x.stride(0) == tokens * x.stride(1), x.stride()
    assert parts in (1, 2), parts
    half = size // 2
    _norm_rotate[(batch * tokens, parts)](
        x, weights[0], weights[-1], rope, tokens, x.stride(1), x.stride(2), eps,
        HEADS=heads, HEADS_BLOCK=triton.next_power_of_2(heads), HALF=half, HALF_BLOCK=triton.next_power_of_2(half),
        num_warps=HEAD_WARPS,
    )  # fmt: skip
    return x


def gelu(x: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `fused.gelu_fp8`."""
    return _elementwise(x, out_dtype, gelu=True)


def convert(x: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `fused.to_fp8`."""
    return _elementwise(x, out_dtype, gelu=False)


def _elementwise(x: Tensor, out_dtype: torch.dtype, *, gelu: bool) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x, dtype=out_dtype)
    count = x.numel()
    grid = (triton.cdiv(count, ELEMENTS),)
    _each_element[grid](x, out, count, BLOCK=ELEMENTS, GELU=gelu, num_warps=ELEMENTS_WARPS)
    return out


def _rows(x: Tensor) -> tuple[int]:
    return (x.shape[0] * x.shape[1],)


@triton.jit
def _store(at, value, inside):
    """Stores float32 in the dtype of `at`; float8 saturates, and keeps NaN."""
    if at.dtype.element_ty == tl.float8e4nv:
        value = tl.clamp(value, -448.0, 448.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(at, value.to(at.dtype.element_ty), mask=inside)


@triton.jit
def _each_element(x_ptr, out_ptr, count, BLOCK: tl.constexpr, GELU: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        x = x * tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x))  # 0.5 (1 + tanh(z)) = sigmoid(2 z)
    _store(out_ptr + at, x, inside)


@triton.jit
def _norm_modulate(
    x_ptr, update_ptr, gate_ptr, shift_ptr, scale_ptr, total_ptr, out_ptr,
    tokens, gate_stride, shift_stride, width, eps,
    BLOCK: tl.constexpr, ADDS: tl.constexpr, NORMS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    sample = row // tokens
    x = tl.load(x_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        gate = tl.load(gate_ptr + sample * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
        x += gate * tl.load(update_ptr + row * width + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + row * width + column, x.to(total_ptr.dtype.element_ty), mask=inside)
    if NORMS:
        mean = tl.sum(x, axis=0) / width
        centred = tl.where(inside, x - mean, 0.0)
        variance = tl.sum(centred * centred, axis=0) / width
        normed = centred / tl.sqrt(variance + eps)
        shift = tl.load(shift_ptr + sample * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scale_ptr + sample * shift_stride + column, mask=inside, other=0.0).to(tl.float32)
        out = normed * (1 + scale) + shift
        _store(out_ptr + row * width + column, out, inside)


@triton.jit
def _norm_rotate(
    x_ptr, first_weight_ptr, second_weight_ptr, rope_ptr, tokens, row_stride, part_stride, eps,
    HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    at = x_ptr + row * row_stride + part * part_stride + head * (2 * HALF) + column
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    mean_square = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF)
    inverse = (1 / tl.sqrt(mean_square + eps))[:, None]
    weight_ptr = first_weight_ptr
    if part == 1:
        weight_ptr = second_weight_ptr
    in_half = column < HALF
    a = a * inverse * tl.load(weight_ptr + column, mask=in_half, other=0.0).to(tl.float32)
    b = b * inverse * tl.load(weight_ptr + HALF + column, mask=in_half, other=0.0).to(tl.float32)
    token = row % tokens
    cos = tl.load(rope_ptr + token * HALF + column, mask=in_half, other=0.0).to(tl.float32)
    sin = tl.load(rope_ptr + (tokens + token) * HALF + column, mask=in_half, other=0.0).to(tl.float32)
    tl.store(at, (a * cos - b * sin).to(x_ptr.dtype.element_ty), mask=inside)
    tl.store(at + HALF, (a * sin + b * cos).to(x_ptr.dtype.element_ty), mask=inside)
