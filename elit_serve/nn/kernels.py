"""Triton kernels of `fused`: everything in float32 inside, one pass over memory; most have one program per token.

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
QUERIES, WORDS = 64, 32  # that a program has at a time, of those that attend to words
WORDS_WARPS = 4
TILE = 4096  # elements of channels-last activations that a program has at a time
TILE_WARPS = 4
SUMMING = 1024  # programs that sum up for a group norm, over all samples: some for each multiprocessor


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


def norm_rotate(x: Tensor, weights: Sequence[Tensor], rope: Tensor, eps: float, *, pairs: bool = False) -> Tensor:
    """See `fused.norm_rotate`. x may be a slice of a wider tensor along M; its last two dimensions are contiguous."""
    batch, tokens, parts, heads, size = x.shape
    assert x.stride()[2:] == (heads * size, size, 1), x.stride()
    assert x.stride(0) == tokens * x.stride(1), x.stride()
    assert parts in (1, 2), parts
    half = size // 2
    _norm_rotate[(batch * tokens, parts)](
        x, weights[0], weights[-1], rope, tokens, x.stride(1), x.stride(2), eps,
        HEADS=heads, HEADS_BLOCK=triton.next_power_of_2(heads), HALF=half, HALF_BLOCK=triton.next_power_of_2(half),
        PAIRS=pairs, num_warps=HEAD_WARPS,
    )  # fmt: skip
    return x


def takes_head(size: int) -> bool:
    """Whether `attend_to_words` knows heads of this size."""
    return size in (16, 32, 64, 128)


def attend_to_words(out: Tensor, sums: Tensor, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Goes on with attention over tokens, over words: out and q [B, H, N, E], k and v [B, H, T, E], seen [B, 1, 1, T].

    out is what came of the tokens, and is written over; sums [B, H, N] is the logarithm of what its weights are over.
    """
    batch, heads, tokens, size = q.shape
    words = k.shape[2]
    assert {each.stride(3) for each in (out, q, k, v)} == {1}, [each.stride() for each in (out, q, k, v)]
    _attend_to_words[(triton.cdiv(tokens, QUERIES), heads, batch)](
        out, sums.contiguous(), q, k, v, seen, tokens, words, *out.stride()[:3], *q.stride()[:3], *k.stride()[:3],
        *v.stride()[:3], seen.stride(0), size**-0.5, SIZE=size, QUERIES=QUERIES, WORDS=WORDS, num_warps=WORDS_WARPS,
    )  # fmt: skip
    return out


def gelu_times(x: Tensor, factor: Tensor) -> Tensor:
    """See `fused.gelu_times`."""
    return _elementwise(x, x.dtype, gelu=True, factor=factor.contiguous())


def gelu(x: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `fused.gelu_fp8`."""
    return _elementwise(x, out_dtype, gelu=True)


def convert(x: Tensor, out_dtype: torch.dtype) -> Tensor:
    """See `fused.to_fp8`."""
    return _elementwise(x, out_dtype, gelu=False)


def takes_groups(channels: int, groups: int) -> bool:
    """Whether the kernels of activations know so many: powers of two, as tiles are."""
    return channels & (channels - 1) == groups & (groups - 1) == 0 and groups <= channels <= TILE


def group_norm_silu(x: Tensor, bias: Tensor | None, groups: int, weight: Tensor, shift: Tensor, eps: float) -> Tensor:
    """See `fused.group_norm_silu`. Three kernels: sums of parts of each sample, a scale and a shift for each of its
    channels, and these applied."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels = x.shape[:2]
    pixels = x[0, 0].numel()
    rows = TILE // channels
    parts = triton.next_power_of_2(max(1, min(SUMMING // batch, triton.cdiv(pixels, rows))))
    sums = torch.empty(batch, parts, 2, groups, device=x.device, dtype=torch.float32)
    affine = torch.empty(batch, 2, channels, device=x.device, dtype=torch.float32)
    added = weight if bias is None else bias
    sizes = {"CHANNELS": channels, "BIASED": bias is not None, "num_warps": TILE_WARPS}
    _group_sums[(batch, parts)](
        x, added, sums, pixels, triton.cdiv(triton.cdiv(pixels, rows), parts) * rows, GROUPS=groups, ROWS=rows, **sizes
    )
    _group_affine[(batch,)](
        sums, weight, shift, added, affine, pixels * (channels // groups), eps, PARTS=parts, GROUPS=groups, **sizes
    )
    out = torch.empty_like(x)
    _affine_silu[(triton.cdiv(pixels, rows), batch)](
        x, affine, out, pixels, CHANNELS=channels, ROWS=rows, num_warps=TILE_WARPS
    )
    return out


def add_biased(x: Tensor, update: Tensor, bias: Tensor) -> Tensor:
    """See `fused.add_biased`."""
    x, update = (part.contiguous(memory_format=torch.channels_last) for part in (x, update))
    out = torch.empty_like(x)
    rows = TILE // x.shape[1]
    pixels = x.numel() // x.shape[1]
    _add_biased[(triton.cdiv(pixels, rows),)](
        x, update, bias, out, pixels, CHANNELS=x.shape[1], ROWS=rows, num_warps=TILE_WARPS
    )
    return out


def doubled(x: Tensor) -> Tensor:
    """See `fused.doubled`."""
    x = x.contiguous(memory_format=torch.channels_last)
    batch, channels, height, width = x.shape
    out = torch.empty(
        batch, channels, 2 * height, 2 * width, device=x.device, dtype=x.dtype, memory_format=torch.channels_last
    )
    rows = TILE // channels
    pixels = batch * height * width
    _doubled[(triton.cdiv(pixels, rows),)](x, out, pixels, width, CHANNELS=channels, ROWS=rows, num_warps=TILE_WARPS)
    return out


def _elementwise(x: Tensor, out_dtype: torch.dtype, *, gelu: bool, factor: Tensor | None = None) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x, dtype=out_dtype)
    count = x.numel()
    grid = (triton.cdiv(count, ELEMENTS),)
    _each_element[grid](
        x, x if factor is None else factor, out, count, BLOCK=ELEMENTS, GELU=gelu, TIMES=factor is not None,
        num_warps=ELEMENTS_WARPS,
    )  # fmt: skip
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
def _each_element(
    x_ptr, factor_ptr, out_ptr, count, BLOCK: tl.constexpr, GELU: tl.constexpr, TIMES: tl.constexpr
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    if GELU:
        x = x * tl.sigmoid(1.5957691216 * (x + 0.044715 * x * x * x))  # 0.5 (1 + tanh(z)) = sigmoid(2 z)
    if TIMES:
        x *= tl.load(factor_ptr + at, mask=inside, other=0.0).to(tl.float32)
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
def _two(
    ptr, column, inside, ROWS: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, PAIRS: tl.constexpr
):  # fmt: skip
    """The numbers that are turned together, as two blocks in float32: the halves of each row, or its pairs. Pairs are
    loaded in one piece, because loading every second number took ten times as long on an NVIDIA H200."""
    if PAIRS:
        both = tl.arange(0, 2 * HALF_BLOCK)[None, :]
        x = tl.load(ptr + both, mask=inside & (both < 2 * HALF), other=0.0)
        a, b = tl.split(tl.reshape(x, (ROWS, HALF_BLOCK, 2)))
    else:
        is_in_half = column < HALF
        a = tl.load(ptr + column, mask=inside & is_in_half, other=0.0)
        b = tl.load(ptr + HALF + column, mask=inside & is_in_half, other=0.0)
    return a.to(tl.float32), b.to(tl.float32)


@triton.jit
def _norm_rotate(
    x_ptr, first_weight_ptr, second_weight_ptr, rope_ptr, tokens, row_stride, part_stride, eps,
    HEADS: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF: tl.constexpr, HALF_BLOCK: tl.constexpr, PAIRS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    head = tl.arange(0, HEADS_BLOCK)[:, None]
    column = tl.arange(0, HALF_BLOCK)[None, :]
    is_head, in_half = head < HEADS, column < HALF
    at = x_ptr + row * row_stride + part * part_stride + head * (2 * HALF)
    weight_ptr = first_weight_ptr
    if part == 1:
        weight_ptr = second_weight_ptr
    a, b = _two(at, column, is_head, HEADS_BLOCK, HALF, HALF_BLOCK, PAIRS)
    mean_square = (tl.sum(a * a, axis=1) + tl.sum(b * b, axis=1)) / (2 * HALF)
    inverse = (1 / tl.sqrt(mean_square + eps))[:, None]
    weight_a, weight_b = _two(weight_ptr, column, tl.full([1, 1], 1, tl.int1), 1, HALF, HALF_BLOCK, PAIRS)
    a = a * inverse * weight_a
    b = b * inverse * weight_b
    token = row % tokens
    cos = tl.load(rope_ptr + token * HALF + column, mask=in_half, other=0.0).to(tl.float32)
    sin = tl.load(rope_ptr + (tokens + token) * HALF + column, mask=in_half, other=0.0).to(tl.float32)
    turned_a = (a * cos - b * sin).to(x_ptr.dtype.element_ty)
    turned_b = (a * sin + b * cos).to(x_ptr.dtype.element_ty)
    if PAIRS:
        both = tl.arange(0, 2 * HALF_BLOCK)[None, :]
        turned = tl.reshape(tl.join(turned_a, turned_b), (HEADS_BLOCK, 2 * HALF_BLOCK))
        tl.store(at + both, turned, mask=is_head & (both < 2 * HALF))
    else:
        tl.store(at + column, turned_a, mask=is_head & in_half)
        tl.store(at + HALF + column, turned_b, mask=is_head & in_half)


@triton.jit
def _attend_to_words(
    out_ptr, sums_ptr, q_ptr, k_ptr, v_ptr, seen_ptr, tokens, words,
    out_batch, out_head, out_token, q_batch, q_head, q_token, k_batch, k_head, k_word, v_batch, v_head, v_word,
    seen_batch, scale, SIZE: tl.constexpr, QUERIES: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """The softmax of FlashAttention, begun by another kernel: of the keys before, the largest score stands for all."""
    token = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    head = tl.program_id(1).to(tl.int64)
    sample = tl.program_id(2).to(tl.int64)
    column = tl.arange(0, SIZE)[None, :]
    is_token = token < tokens
    inside = is_token[:, None]
    q = tl.load(q_ptr + sample * q_batch + head * q_head + token[:, None] * q_token + column, mask=inside, other=0.0)
    at = out_ptr + sample * out_batch + head * out_head + token[:, None] * out_token + column
    total = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    of_heads = sample * tl.num_programs(1) + head
    largest = tl.load(sums_ptr + of_heads * tokens + token, mask=is_token, other=0.0)
    weights = tl.full([QUERIES], 1.0, tl.float32)
    for start in range(0, words, WORDS):
        word = start + tl.arange(0, WORDS)
        is_word = word < words
        rows = word[:, None]
        k = tl.load(k_ptr + sample * k_batch + head * k_head + rows * k_word + column, mask=is_word[:, None], other=0.0)
        v = tl.load(v_ptr + sample * v_batch + head * v_head + rows * v_word + column, mask=is_word[:, None], other=0.0)
        seen = tl.load(seen_ptr + sample * seen_batch + word, mask=is_word, other=-float("inf")).to(tl.float32)
        scores = tl.dot(q, tl.trans(k)) * scale + seen[None, :]
        larger = tl.maximum(largest, tl.max(scores, axis=1))
        shrunk = tl.exp(largest - larger)
        of_words = tl.exp(scores - larger[:, None])
        weights = weights * shrunk + tl.sum(of_words, axis=1)
        total = total * shrunk[:, None] + tl.dot(of_words.to(v.dtype), v)
        largest = larger
    tl.store(at, (total / weights[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _group_sums(
    x_ptr, bias_ptr, sums_ptr, pixels, part_pixels,
    CHANNELS: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Of a part of one sample's pixels: the sum of each group, and that of squares."""
    sample = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    channel = tl.arange(0, CHANNELS)
    first = part * part_pixels
    last = tl.minimum(first + part_pixels, pixels)
    total = tl.zeros([ROWS, CHANNELS], tl.float32)
    squares = tl.zeros([ROWS, CHANNELS], tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)
        inside = (row < last)[:, None]
        at = x_ptr + (sample * pixels + row)[:, None] * CHANNELS + channel[None, :]
        x = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if BIASED:
            x = tl.where(inside, x + tl.load(bias_ptr + channel).to(tl.float32)[None, :], 0.0)
        total += x
        squares += x * x
    group = tl.arange(0, GROUPS)
    sums_ptr += (sample * tl.num_programs(1) + part) * 2 * GROUPS
    by_group = tl.reshape(tl.sum(total, axis=0), (GROUPS, CHANNELS // GROUPS))
    tl.store(sums_ptr + group, tl.sum(by_group, axis=1))
    by_group = tl.reshape(tl.sum(squares, axis=0), (GROUPS, CHANNELS // GROUPS))
    tl.store(sums_ptr + GROUPS + group, tl.sum(by_group, axis=1))


@triton.jit
def _group_affine(
    sums_ptr, weight_ptr, shift_ptr, bias_ptr, affine_ptr, count, eps,
    PARTS: tl.constexpr, CHANNELS: tl.constexpr, GROUPS: tl.constexpr, BIASED: tl.constexpr,
):  # fmt: skip
    """Of one sample: what its channels are multiplied by, and what is added then."""
    sample = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    at = sums_ptr + (sample * PARTS + tl.arange(0, PARTS)[:, None]) * 2 * GROUPS + group[None, :]
    mean = tl.sum(tl.load(at), axis=0) / count
    variance = tl.maximum(tl.sum(tl.load(at + GROUPS), axis=0) / count - mean * mean, 0.0)
    inverse = 1 / tl.sqrt(variance + eps)
    channel = group[:, None] * (CHANNELS // GROUPS) + tl.arange(0, CHANNELS // GROUPS)[None, :]
    scale = inverse[:, None] * tl.load(weight_ptr + channel).to(tl.float32)
    if BIASED:
        mean_of_x = mean[:, None] - tl.load(bias_ptr + channel).to(tl.float32)
    else:
        mean_of_x = mean[:, None] + tl.zeros([GROUPS, CHANNELS // GROUPS], tl.float32)
    shift = tl.load(shift_ptr + channel).to(tl.float32) - mean_of_x * scale
    tl.store(affine_ptr + sample * 2 * CHANNELS + channel, scale)
    tl.store(affine_ptr + sample * 2 * CHANNELS + CHANNELS + channel, shift)


@triton.jit
def _affine_silu(x_ptr, affine_ptr, out_ptr, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sample = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    inside = (row < pixels)[:, None]
    at = (sample * pixels + row)[:, None] * CHANNELS + channel[None, :]
    scale = tl.load(affine_ptr + sample * 2 * CHANNELS + channel)[None, :]
    shift = tl.load(affine_ptr + sample * 2 * CHANNELS + CHANNELS + channel)[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32) * scale + shift
    tl.store(out_ptr + at, (x * tl.sigmoid(x)).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _add_biased(x_ptr, update_ptr, bias_ptr, out_ptr, pixels, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)
    inside = (row < pixels)[:, None]
    at = row[:, None] * CHANNELS + channel[None, :]
    bias = tl.load(bias_ptr + channel).to(tl.float32)[None, :]
    x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
    update = tl.load(update_ptr + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (x + update + bias).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _doubled(x_ptr, out_ptr, pixels, width, CHANNELS: tl.constexpr, ROWS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, CHANNELS)[None, :]
    inside = (row < pixels)[:, None]
    x = tl.load(x_ptr + row[:, None] * CHANNELS + channel, mask=inside)
    first = (row // width) * 4 * width + (row % width) * 2  # lines of all samples stand one below the other
    for below in range(2):
        for right in range(2):
            at = (first + below * 2 * width + right)[:, None] * CHANNELS + channel
            tl.store(out_ptr + at, x, mask=inside)
