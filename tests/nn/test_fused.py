"""The Triton kernels against plain torch, in Triton's interpreter: the same numbers, no GPU needed."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor

from elit_serve.nn import fused

BATCH, TOKENS, HEADS, SIZE = 3, 5, 4, 72  # no power of two among the sizes, so that masks matter
DIM = HEADS * SIZE


@pytest.fixture
def kernels() -> ModuleType:
    from elit_serve.nn import kernels

    return kernels


@pytest.fixture
def draw() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def condition(draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """gate, shift, scale [B, D], chunks of one tensor as in a block."""
    gate, shift, scale = torch.randn(BATCH, 3 * DIM, generator=draw).chunk(3, dim=-1)
    return gate, shift, scale


def test_norm_and_modulation(kernels: ModuleType, draw: torch.Generator) -> None:
    x = torch.randn(BATCH, TOKENS, DIM, generator=draw)
    _, shift, scale = condition(draw)
    expected = fused.norm_modulate(x, shift, scale)
    torch.testing.assert_close(kernels.norm_modulate(x, shift, scale, fused.EPS, x.dtype), expected)


def test_an_update_that_is_added_at_last(kernels: ModuleType, draw: torch.Generator) -> None:
    x, update = torch.randn(2, BATCH, TOKENS, DIM, generator=draw)
    gate, _, _ = condition(draw)
    torch.testing.assert_close(kernels.gated_add(x, update, gate), fused.Residual(x, update, gate).settled())


@pytest.mark.parametrize("is_biased", [False, True])
@pytest.mark.parametrize(("channels", "groups"), [(8, 4), (64, 32), (256, 32)])
def test_a_group_norm_and_what_is_around_it_channels_last(
    kernels: ModuleType, draw: torch.Generator, channels: int, groups: int, is_biased: bool
) -> None:
    x = 2 * torch.randn(BATCH, channels, 9, 7, generator=draw) + 1
    bias = torch.randn(channels, generator=draw) if is_biased else None
    norm = torch.nn.GroupNorm(groups, channels).requires_grad_(False)
    norm.weight.copy_(torch.randn(channels, generator=draw))
    norm.bias.copy_(torch.randn(channels, generator=draw))
    got = kernels.group_norm_silu(x, bias, groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(got, fused.group_norm_silu(x, norm, bias))
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_a_sum_with_a_bias_channels_last(kernels: ModuleType, draw: torch.Generator) -> None:
    x, update = torch.randn(2, BATCH, 32, 9, 7, generator=draw)
    bias = torch.randn(32, generator=draw)
    torch.testing.assert_close(kernels.add_biased(x, update, bias), fused.add_biased(x, update, bias))


def test_doubled_sides_channels_last(kernels: ModuleType, draw: torch.Generator) -> None:
    x = torch.randn(BATCH, 32, 5, 7, generator=draw)
    torch.testing.assert_close(kernels.doubled(x), fused.doubled(x))


@pytest.mark.parametrize(("channels", "groups"), [(96, 32), (12, 4), (8192, 32)])
def test_channels_that_no_tile_holds_are_left_to_torch(kernels: ModuleType, channels: int, groups: int) -> None:
    assert not kernels.takes_groups(channels, groups)


@pytest.mark.parametrize("gate_width", [1, 6])
def test_an_update_and_the_norm_after_it_whatever_tensor_the_gate_is_a_part_of(
    kernels: ModuleType, draw: torch.Generator, gate_width: int
) -> None:
    x, update = torch.randn(2, BATCH, TOKENS, DIM, generator=draw)
    gate = torch.randn(BATCH, gate_width * DIM, generator=draw)[:, -DIM:]
    _, shift, scale = condition(draw)
    expected = fused.settle_and_norm(fused.Residual(x, update, gate), shift, scale)
    got = kernels.gated_add_norm_modulate(x, update, gate, shift, scale, fused.EPS, x.dtype)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("pairs", [False, True])
def test_head_norm_and_rope_of_the_first_parts_of_a_wider_tensor(
    kernels: ModuleType, draw: torch.Generator, parts: int, *, pairs: bool
) -> None:
    qkv = torch.randn(BATCH, TOKENS, 3, HEADS, SIZE, generator=draw)
    rope = torch.randn(2, TOKENS, 1, SIZE // 2, generator=draw)
    weights = tuple(torch.randn(2, SIZE, generator=draw))[:parts]
    untouched = qkv[:, :, parts:].clone()
    expected = torch.stack(fused.norm_rotate(qkv[:, :, :parts], weights, rope, pairs=pairs), dim=2)
    got = kernels.norm_rotate(qkv[:, :, :parts], weights, rope, fused.EPS, pairs=pairs)
    torch.testing.assert_close(got, expected)
    assert torch.equal(qkv[:, :, parts:], untouched)


def test_a_gelu_times_a_factor(kernels: ModuleType, draw: torch.Generator) -> None:
    x, factor = torch.randn(2, BATCH, TOKENS, DIM, generator=draw)
    torch.testing.assert_close(kernels.gelu_times(x, factor), fused.gelu_times(x, factor))


@pytest.mark.parametrize(("tokens", "words"), [(130, 70), (16, 64), (5, 1)])
def test_words_that_are_attended_to_behind_tokens(
    kernels: ModuleType, draw: torch.Generator, tokens: int, words: int
) -> None:
    """Of heads that are parts of wider tensors, as products of matrices make them."""
    size = 32
    q, k, v = torch.randn(BATCH, tokens, 3, HEADS, size, generator=draw).permute(2, 0, 3, 1, 4)
    words_k, words_v = 3 * torch.randn(BATCH, words, 2, HEADS, size, generator=draw).permute(2, 0, 3, 1, 4)
    seen = torch.zeros(BATCH, 1, 1, words)
    seen[0, ..., words // 2 :] = -torch.inf
    seen[1] = -torch.inf
    expected = fused.attend_with_words(q, k, v, words_k, words_v, seen)
    scores = q @ k.mT / size**0.5
    behind_tokens = (scores.softmax(dim=-1) @ v).transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.allclose(behind_tokens[1], expected[1], atol=1e-5), "of the sample that sees no word"
    assert not torch.allclose(behind_tokens[2], expected[2], atol=0.01)
    got = kernels.attend_to_words(behind_tokens, scores.logsumexp(dim=-1), q, words_k, words_v, seen)
    torch.testing.assert_close(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize(("tokens", "words"), [(1024, 256), (16, 64)])
def test_words_that_are_attended_to_behind_tokens_on_a_gpu(draw: torch.Generator, tokens: int, words: int) -> None:
    q, k, v = torch.randn(BATCH, tokens, 3, HEADS, 64, generator=draw).permute(2, 0, 3, 1, 4)
    words_k, words_v = 3 * torch.randn(BATCH, words, 2, HEADS, 64, generator=draw).permute(2, 0, 3, 1, 4)
    seen = torch.zeros(BATCH, 1, 1, words).masked_fill_(torch.arange(words) >= words // 3, -torch.inf)
    given = q, k, v, words_k, words_v, seen
    expected = fused.attend_with_words(*(each.bfloat16().float() for each in given))
    with torch.inference_mode():
        got = fused.attend_with_words(*(each.to("cuda", torch.bfloat16) for each in given))
    torch.testing.assert_close(got.cpu().float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("size", [8, 72, 256])
def test_heads_that_no_kernel_attends_with_are_left_to_torch(kernels: ModuleType, size: int) -> None:
    assert not kernels.takes_head(size)


def test_where_no_kernel_can_run_plain_torch_takes_their_place_with_one_line() -> None:
    """As on a GPU without a C compiler: here Triton itself, not its interpreter, finds no GPU."""
    programme = """
import torch
from elit_serve.nn.fused import working_kernels
print([working_kernels(torch.device("cpu")) for _ in range(2)])
"""
    done = subprocess.run(
        [sys.executable, "-c", programme],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[None, None]\n"
    assert done.stderr.startswith("no Triton kernel runs on cpu, so slower ones of torch do their work: ")
    assert done.stderr.count("\n") == 1


def test_the_kernels_are_used_where_they_run(kernels: ModuleType) -> None:
    assert fused.working_kernels(torch.device("cpu")) is kernels
