"""Recomputed attention: it is the module's own, it sums to one, and it tells who attends to whom."""

from __future__ import annotations

import torch
from torch import Tensor

from elit_serve.nn.attention import grouped_probabilities, self_probabilities
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
