"""Recomputed attention: it is the module's own, it sums to one, and it tells who attends to whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel

from elit_serve.engine.executor.graphs import ATTENTION
from elit_serve.nn.attention import grouped_probabilities, self_probabilities
from elit_serve.nn.kept import Kept
from elit_serve.nn.layers import GroupedCrossAttention, SelfAttention, rope_table

DIM, HEADS, GROUPS, WINDOW, LEVEL = 32, 2, 4, 6, 3
TOKENS = 16


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn, also those that start at zero: all of it must matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


def applied(probabilities: Tensor, values: Tensor, out: torch.nn.Linear) -> Tensor:
    """Probabilities [..., H, L, K] and values [..., K, H, E] through the output projection. -> [..., L, D]"""
    read = torch.einsum("...hlk,...khe->...lhe", probabilities, values)
    return out(read.flatten(-2))


def test_recomputed_cross_attention_gives_the_modules_own_output() -> None:
    attention = drawn(GroupedCrossAttention(DIM, HEADS))
    assert isinstance(attention, GroupedCrossAttention)
    x, context = torch.randn(2, GROUPS * LEVEL, DIM), torch.randn(2, GROUPS * WINDOW, DIM)
    rope, context_rope = (rope_table(torch.rand(n, 2) * 8, DIM // HEADS) for n in (GROUPS * LEVEL, GROUPS * WINDOW))
    with torch.no_grad():
        probabilities = grouped_probabilities(attention, x, context, rope, context_rope, GROUPS)
        assert probabilities.shape == (2, GROUPS, HEADS, LEVEL, WINDOW)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, GROUPS, HEADS, LEVEL))
        values = attention.kv(context).view(2, GROUPS, WINDOW, 2, HEADS, -1)[:, :, :, 1]
        ours = applied(probabilities, values, attention.out).flatten(1, 2)
        torch.testing.assert_close(ours, attention(x, context, rope, context_rope, GROUPS), atol=1e-4, rtol=1e-4)


def test_recomputed_self_attention_gives_the_modules_own_output() -> None:
    attention = drawn(SelfAttention(DIM, HEADS))
    assert isinstance(attention, SelfAttention)
    x, rope = torch.randn(2, TOKENS, DIM), rope_table(torch.rand(TOKENS, 2) * 4, DIM // HEADS)
    with torch.no_grad():
        probabilities = self_probabilities(attention, x, rope)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, HEADS, TOKENS))
        values = attention.qkv(x).view(2, TOKENS, 3, HEADS, -1)[:, :, 2]
        torch.testing.assert_close(
            applied(probabilities, values, attention.out), attention(x, rope), atol=1e-4, rtol=1e-4
        )


DEVICES = [
    pytest.param("cpu", torch.float32, id="cpu"),
    pytest.param(
        "cuda",
        torch.bfloat16,
        marks=pytest.mark.gpu,
        id="cuda",
    ),
]


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@pytest.mark.parametrize("level", [2, 5, 8])
@torch.inference_mode()
def test_latents_that_are_kept_attend_to_those_of_their_own_sample_alone(
    device: str, dtype: torch.dtype, level: int
) -> None:
    attention = drawn(SelfAttention(DIM, HEADS)).to(device, dtype)
    own = torch.tensor([1, level, level - 1], device=device)
    x = torch.randn(3, GROUPS * level, DIM, device=device, dtype=dtype)
    rope = rope_table(torch.rand(GROUPS * level, 2, device=device) * 4, DIM // HEADS)
    kept = Kept.of(own, level, GROUPS)
    assert kept is not None
    with sdpa_kernel(ATTENTION, set_priority=True):
        together = attention(x, rope, mask=kept.mask(dtype))
        for sample, is_kept in enumerate(kept.of_group.repeat(1, GROUPS)):
            assert int(is_kept.sum()) == GROUPS * int(own[sample])
            alone = attention(x[sample : sample + 1, is_kept], rope[:, is_kept])
            assert_near(together[sample, is_kept], alone[0])


@pytest.mark.parametrize(("device", "dtype"), DEVICES)
@torch.inference_mode()
def test_tokens_read_the_kept_latents_of_their_group_alone(device: str, dtype: torch.dtype) -> None:
    attention = drawn(GroupedCrossAttention(DIM, HEADS)).to(device, dtype)
    own = torch.tensor([1, 3, 2], device=device)
    x = torch.randn(3, GROUPS * WINDOW, DIM, device=device, dtype=dtype)
    context = torch.randn(3, GROUPS * LEVEL, DIM, device=device, dtype=dtype)
    rope, context_rope = (
        rope_table(torch.rand(count, 2, device=device) * 8, DIM // HEADS) for count in (GROUPS * WINDOW, GROUPS * LEVEL)
    )
    kept = Kept.of(own, LEVEL, GROUPS)
    assert kept is not None
    with sdpa_kernel(ATTENTION, set_priority=True):
        together = attention(x, context, rope, context_rope, GROUPS, mask=kept.mask_in_groups(dtype))
        for sample, is_kept in enumerate(kept.of_group.repeat(1, GROUPS)):
            own_context = context[sample : sample + 1, is_kept]
            alone = attention(x[sample : sample + 1], own_context, rope, context_rope[:, is_kept], GROUPS)
            assert_near(together[sample], alone[0])


def test_what_takes_the_place_of_latents_has_the_same_text_behind_it() -> None:
    kept = Kept.of(torch.tensor([1, 4]), 4, GROUPS, 3)
    assert kept is not None
    seen = kept.every(2).mask(torch.float32)[:, 0, 0] == 0
    assert seen[0].tolist() == [True, False] * GROUPS + [True] * 3
    assert seen[1].tolist() == [True, True] * GROUPS + [True] * 3


def assert_near(one: Tensor, other: Tensor) -> None:
    """As far as the dtype goes. What is seen besides changes it by far more."""
    tolerance = 0.05 if one.dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_equal_keys_are_read_equally_and_one_that_fits_is_read_alone() -> None:
    attention = GroupedCrossAttention(8, 1)  # identity projections, no rotation: the product is that of the inputs
    with torch.no_grad():
        for linear in (attention.q, attention.kv):
            linear.weight.copy_(torch.eye(8).repeat(linear.out_features // 8, 1))
            linear.bias.zero_()
        attention.q_norm.weight.fill_(10)  # sharpens
        rope = rope_table(torch.zeros(3, 2), 8)
        query, other = torch.eye(8)[:1], torch.eye(8)[1:2]
        uniform = grouped_probabilities(attention, query[None], other.repeat(3, 1)[None], rope[:, :1], rope, 1)
        picked = torch.cat([other, query, other])[None]
        alone = grouped_probabilities(attention, query[None], picked, rope[:, :1], rope, 1)
    torch.testing.assert_close(uniform.flatten(), torch.full((3,), 1 / 3))
    torch.testing.assert_close(alone.flatten(), torch.tensor([0.0, 1.0, 0.0]), atol=1e-6, rtol=0)
