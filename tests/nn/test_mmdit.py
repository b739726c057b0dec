"""What texts are to MM-DiTs, beyond what every kind of the table must do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elit_serve.nn import Backbone
from elit_serve.nn.backbones.elit_mmdit import KIND as ELIT_MMDIT
from elit_serve.nn.backbones.elit_mmdit import ElitMMDiTSpec
from elit_serve.nn.backbones.mmdit import KIND as MMDIT
from elit_serve.nn.backbones.mmdit import LastBlock
from elit_serve.nn.backbones.table import build
from elit_serve.nn.latents import watch_latents
from elit_serve.nn.text import TextTokens
from elit_serve.trainer.loss import rectified_flow_loss
from tests.nn.test_every_backbone import assert_near, counted_flops, inputs, randomised
from tests.text_models import Letters

LEVEL = 1


@pytest.fixture(params=[MMDIT.tiny, ELIT_MMDIT.tiny], ids=["mmdit", "elit-mmdit"])
def model(request: pytest.FixtureRequest) -> Backbone:
    return randomised(request.param)


def velocity(model: Backbone, condition: Tensor) -> Tensor:
    """At the same samples and times, whatever the texts [B, T, D + 1] are."""
    x = torch.randn(1, *model.spec.sample_shape, generator=torch.Generator().manual_seed(1))
    count = len(condition)
    return model(x.expand(count, -1, -1, -1).contiguous(), torch.full((count,), 0.3), condition, LEVEL)


def test_what_stands_in_padding_is_not_read(model: Backbone) -> None:
    short = Letters().encode(["tea"])
    noisy = short.clone()
    noisy[:, 3:, :-1] = torch.randn(1, 3, short.shape[2] - 1)
    assert not TextTokens.of(noisy).mask[:, 3:].any()
    assert_near(velocity(model, noisy), velocity(model, short))


def test_words_in_another_order_are_another_text(model: Backbone) -> None:
    one, other = velocity(model, Letters().encode(["ab", "ba"]))
    assert not torch.allclose(one, other, atol=1e-4)


def test_an_empty_text_is_no_text(model: Backbone) -> None:
    empty = Letters().encode([""])
    assert_near(velocity(model, empty), velocity(model, model.null_like(Letters().encode(["tea"]))))
    assert not torch.allclose(velocity(model, empty), velocity(model, Letters().encode(["tea"])), atol=1e-4)


def test_text_is_learned_from_in_bfloat16_too(model: Backbone) -> None:
    model.requires_grad_(True)
    data, condition = torch.randn(2, *model.spec.sample_shape), Letters().encode(["tea", "to"])
    with torch.autocast("cpu", torch.bfloat16):
        loss = rectified_flow_loss(model, data, torch.randn_like(data), torch.tensor([0.2, 0.7]), condition, LEVEL)
    torch.autograd.backward(loss)
    assert loss.isfinite()
    for name in ("text_embed.weight", "mean_text_embed.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.any()


@pytest.mark.parametrize(("split", "last"), [((1, 2, 1), "tail"), ((2, 2, 0), "core")])
def test_only_the_last_block_leaves_its_text(split: tuple[int, int, int], last: str) -> None:
    head, core, tail = split
    spec = ELIT_MMDIT.tiny
    assert isinstance(spec, ElitMMDiTSpec)
    made = build(replace(spec, interface=replace(spec.interface, head=head, core=core, tail=tail)))
    names = [name for name, part in made.named_modules() if isinstance(part, LastBlock)]
    assert names == [f"{last}.{split[('head', 'core', 'tail').index(last)] - 1}"]


@pytest.mark.parametrize("level", [1, 5])
def test_a_core_that_ends_the_blocks_costs_what_is_counted(level: int) -> None:
    """Without a tail its last block leaves the text, which is in the core all the same."""
    spec = ELIT_MMDIT.tiny
    assert isinstance(spec, ElitMMDiTSpec)
    bare = replace(spec, interface=replace(spec.interface, head=2, core=2, tail=0))
    x, t, condition = inputs(bare, batch=1)
    counted = counted_flops(randomised(bare), x, t, condition, level)
    assert counted == pytest.approx(bare.flops(level).executed, rel=0.01)


@pytest.mark.parametrize("level", [2, 8])
def test_latents_of_a_picture_are_looked_at_without_its_text(level: int) -> None:
    made = randomised(ELIT_MMDIT.tiny)
    spec = made.spec
    x, t, condition = inputs(spec)
    seen = watch_latents(made, x, t, condition, level)
    assert seen.after_read.shape == (2, spec.num_groups, spec.latents_per_group, 32)
    assert seen.after_core.shape == (2, spec.num_groups, level, 32)
