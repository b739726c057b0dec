"""Shares of attention: they add up, follow the area where attention is indifferent, and count padding as tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.report.attention import (
    read_shares,
    self_attention_shares,
    token_mask,
    zero_tokens,
)
from elit_serve.nn import DiT, DiTSpec, ElitDiT, ElitDiTSpec, InterfaceSpec, build
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.latents import watch_latents

DIM, HEADS = 32, 2
TOKENS = 16  # of the two models below


def spec(interface: InterfaceSpec | None) -> TransformerSpec:
    """16x16 pixels in 4x4 tokens."""
    fields = {"channels": 3, "height": 16, "width": 16, "patch": 4}
    fields |= {"dim": DIM, "depth": 4, "num_heads": HEADS, "num_classes": 2}
    return DiTSpec(**fields) if interface is None else ElitDiTSpec(**fields, interface=interface)


def drawn(module: torch.nn.Module) -> torch.nn.Module:
    """Every parameter drawn, also those that start at zero: all of it must matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()


@pytest.fixture
def elit() -> ElitDiT:
    model = drawn(build(spec(InterfaceSpec(window=(2, 2), head=1, core=1, tail=2))))
    assert isinstance(model, ElitDiT)
    return model


@pytest.fixture
def dit() -> DiT:
    model = drawn(build(spec(None)))
    assert isinstance(model, DiT)
    return model


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """x, t and label."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 16, 16, generator=generator), torch.full((batch,), 0.4), torch.zeros(batch).long()


def test_shares_of_kinds_that_part_the_tokens_add_up_to_one(dit: DiT) -> None:
    x, t, label = inputs()
    queries, keys = torch.arange(TOKENS) < 4, torch.arange(TOKENS) >= 10
    some = self_attention_shares(dit, x, t, label, queries=queries, keys=keys)
    others = self_attention_shares(dit, x, t, label, queries=queries, keys=~keys)
    assert len(some) == 4
    assert [a + b for a, b in zip(some, others, strict=True)] == pytest.approx([1.0] * 4, abs=1e-5)
    assert self_attention_shares(dit, x, t, label, queries=queries, keys=torch.ones(TOKENS).bool()) == pytest.approx(
        [1.0] * 4, abs=1e-5
    )


def test_indifferent_attention_gives_shares_by_area(dit: DiT, elit: ElitDiT) -> None:
    for attention in (*(block.attention for block in dit.blocks), elit.read.attention):
        attention.q_norm.weight.data.zero_()  # every product is zero
    keys = torch.arange(TOKENS) < 6  # the whole of the first group, half of the second
    given = self_attention_shares(dit, *inputs(), queries=~keys, keys=keys)
    assert given == pytest.approx([6 / 16] * 4, abs=1e-6)
    shares = read_shares(elit, *inputs(), level=2, keys=keys)
    assert shares.area.tolist() == [1, 0.5, 0, 0]
    assert shares.share.tolist() == pytest.approx([1, 0.5, 0, 0], abs=1e-6)
    assert shares.mixed == pytest.approx((0.5, 0.5), abs=1e-6)


def test_read_shares_are_the_mass_on_the_marked_tokens(elit: ElitDiT) -> None:
    keys = torch.zeros(TOKENS).bool()
    keys[[1, 6, 7]] = True  # one of the first group, two of the second
    reads = watch_latents(elit, *inputs(), 3).reads
    shares = read_shares(elit, *inputs(), 3, keys=keys)
    assert float(shares.share[0]) == pytest.approx(float(reads[:, 0, :, 1].mean()))
    assert float(shares.share[1]) == pytest.approx(float(reads[:, 1, :, 2:].sum(-1).mean()))
    assert shares.mixed[1] == pytest.approx((0.25 + 0.5) / 2)


def test_the_spatial_blocks_of_an_elastic_model_are_its_head_and_tail(elit: ElitDiT) -> None:
    assert elit.spatial_blocks() == [*elit.head, *elit.tail]
    everyone = torch.ones(TOKENS).bool()
    assert len(self_attention_shares(elit, *inputs(), queries=everyone, keys=everyone, level=2)) == 3


def test_a_token_is_marked_when_its_whole_patch_is(elit: ElitDiT, dit: DiT) -> None:
    pixels = torch.zeros(16, 16).bool()
    pixels[:, 8:] = True  # the right half: groups 1 and 3, or columns 2 and 3
    pixels[0, 7] = True  # of a patch that is not marked as a whole
    assert token_mask(elit.spec, pixels).tolist() == [False] * 4 + [True] * 4 + [False] * 4 + [True] * 4
    assert token_mask(dit.spec, pixels).tolist() == [False, False, True, True] * 4


@pytest.mark.parametrize(
    ("queries", "keys", "named"),
    [
        (torch.ones(9).bool(), torch.ones(TOKENS).bool(), "queries"),
        (torch.ones(TOKENS).bool(), torch.ones(TOKENS), "keys"),
        (torch.zeros(TOKENS).bool(), torch.ones(TOKENS).bool(), "queries"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(dit: DiT, queries: Tensor, keys: Tensor, named: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        self_attention_shares(dit, *inputs(), queries=queries, keys=keys)
    assert caught.value.field == named


@pytest.mark.parametrize("interface", [None, InterfaceSpec(window=(2, 2), head=1, core=1, tail=2)])
def test_zeros_between_patches_are_tokens_that_attend_and_are_attended_to(interface: InterfaceSpec | None) -> None:
    spread = replace(spec(interface), zeros_between=1)  # 8 x 8 tokens
    model = drawn(build(spread))
    real, zeros = token_mask(spread, torch.ones(16, 16).bool()), zero_tokens(spread, 16, 16)
    assert (real.sum(), zeros.sum()) == (16, 48)
    assert torch.equal(zeros, ~real)
    shares = [self_attention_shares(model, *inputs(), queries=zeros, keys=keys, level=1) for keys in (real, zeros)]
    assert [a + b for a, b in zip(*shares, strict=True)] == pytest.approx([1] * len(shares[0]))
    with pytest.raises(InvalidInput, match="each of 64 tokens"):
        self_attention_shares(model, *inputs(), queries=torch.ones(16).bool(), keys=zeros)
    if isinstance(model, ElitDiT):
        read = read_shares(model, *inputs(), 2, keys=zeros)
        assert read.area.tolist() == [0.75] * 16
        assert ((read.share > 0) & (read.share < 1)).all()


def test_a_marked_patch_is_one_token_however_many_zeros_follow_it() -> None:
    spread = replace(spec(InterfaceSpec(window=(4, 4), head=1, core=1, tail=2)), zeros_between=1)
    pixels = torch.zeros(16, 16).bool()
    pixels[4:8, 8:12] = True  # the third patch of the second row: of the second group, its third row and first column
    assert token_mask(spread, pixels).nonzero().tolist() == [[16 + 2 * 4]]
