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
def test_head_norm_and_rope_of_the_first_parts_of_a_wider_tensor(
    kernels: ModuleType, draw: torch.Generator, parts: int
) -> None:
    qkv = torch.randn(BATCH, TOKENS, 3, HEADS, SIZE, generator=draw)
    rope = torch.randn(2, TOKENS, 1, SIZE // 2, generator=draw)
    weights = tuple(torch.randn(2, SIZE, generator=draw))[:parts]
    untouched = qkv[:, :, parts:].clone()
    expected = torch.stack(fused.norm_rotate(qkv[:, :, :parts], weights, rope), dim=2)
    torch.testing.assert_close(kernels.norm_rotate(qkv[:, :, :parts], weights, rope, fused.EPS), expected)
    assert torch.equal(qkv[:, :, parts:], untouched)


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
