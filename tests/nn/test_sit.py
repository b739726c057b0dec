"""What is their own in SiT and ELIT-SiT; that they compute what the published code does is in tests/importing."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.nn import BackboneSpec, ElitSiT, ElitSiTSpec, build, preset
from elit_serve.nn.backbones.elit_sit import SineInterfaceSpec, width_norm
from elit_serve.nn.backbones.sit import sine_positions
from elit_serve.nn.latents import watch_latents

FIELDS: dict[str, Any] = {"channels": 3, "height": 16, "width": 16, "patch": 2}
FIELDS |= {"dim": 64, "depth": 4, "num_heads": 2, "num_classes": 5}
ELIT = ElitSiTSpec(**FIELDS, interface=SineInterfaceSpec(window=(2, 2), head=1, core=2, tail=1))


def randomised(spec: BackboneSpec) -> Any:
    """A model none of whose parameters are zero, so that everything matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module")
def elit() -> ElitSiT:
    model = randomised(ELIT)
    assert isinstance(model, ElitSiT)
    return model


def inputs(batch: int = 2, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, height, width, generator=generator)
    return x, torch.linspace(0.1, 0.9, batch), torch.arange(batch) % 5


def test_positions_are_sines_and_cosines_of_columns_and_then_of_rows() -> None:
    (position,) = sine_positions(torch.tensor([2]), torch.tensor([3]), 8).tolist()
    angles = [3, 3 / 100, 2, 2 / 100]
    waves = [math.sin(angles[0]), math.sin(angles[1]), math.cos(angles[0]), math.cos(angles[1])]
    waves += [math.sin(angles[2]), math.sin(angles[3]), math.cos(angles[2]), math.cos(angles[3])]
    assert position == pytest.approx(waves, abs=1e-6)


def test_queries_and_keys_have_norm_one_over_the_whole_width() -> None:
    x = torch.randn(2, 3, 16)
    normed = width_norm(x, torch.full((16,), 2.0))
    torch.testing.assert_close(normed.square().mean(-1).sqrt(), torch.full((2, 3), 2.0), rtol=1e-4, atol=0)
    assert not width_norm(torch.zeros(1, 1, 16), torch.ones(16)).any()


def test_the_core_sees_the_first_latents_and_write_sees_all(elit: ElitSiT) -> None:
    other = copy.deepcopy(elit)
    other.latents[3] += torch.randn(64)
    seen: list[Tensor] = []
    handles = [each.core[0].register_forward_pre_hook(lambda _, given: seen.append(given[0])) for each in (elit, other)]
    changed = [each(*inputs(), 2) for each in (elit, other)]
    for handle in handles:
        handle.remove()
    assert torch.equal(*seen)
    assert seen[0].shape == (2, 16 * 2, 64)
    assert not torch.allclose(*changed, atol=1e-4)


def test_another_order_of_the_latents_keeps_other_ones(elit: ElitSiT) -> None:
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(elit(*inputs(), 4, order), elit(*inputs(), 4), atol=1e-5, rtol=1e-4)  # a set
    assert not torch.allclose(elit(*inputs(), 2, order), elit(*inputs(), 2), atol=1e-4)  # another prefix


def test_more_tokens_than_latents_have_positions_are_refused() -> None:
    ELIT.check_size(128, 128)
    with pytest.raises(InvalidInput, match="4224 tokens; latents have 4096 positions"):
        ELIT.check_size(128, 132)


def test_tokens_of_different_groups_tell_each_other_apart() -> None:
    """Their order inside is by group, their positions are by the whole grid."""
    model = randomised(ELIT)
    layout = model.layout(16, 16, torch.device("cpu"))
    assert layout.raster[:8].tolist() == [0, 1, 8, 9, 2, 3, 10, 11]
    by_raster = sine_positions(torch.arange(64) // 8, torch.arange(64) % 8, 64)
    assert torch.equal(layout.sines, by_raster[layout.raster])


def test_what_latents_do_can_be_watched(elit: ElitSiT) -> None:
    seen = watch_latents(elit, *inputs(), 2)
    assert seen.reads.shape == (2, 16, 4, 4)
    assert seen.writes.shape == (2, 16, 4, 4)
    assert seen.after_core.shape == (2, 16, 2, 64)
    for attention in (seen.reads, seen.writes):
        torch.testing.assert_close(attention.sum(-1), torch.ones(2, 16, 4))


def test_a_budget_saves_core_work_only() -> None:
    spec = preset("elit-sit-xl/2", 512)
    assert isinstance(spec, ElitSiTSpec)
    assert (spec.channels, spec.window, spec.interface.head, spec.interface.tail) == (4, (8, 8), 8, 4)
    lowest, full = spec.flops(4), spec.flops(64)
    assert lowest.executed == lowest.all_latents > lowest.prefix
    assert full.prefix == full.all_latents
    assert 0.45 < lowest.executed / full.executed < 0.52
    assert preset("sit-xl/2", 256).flops(1) == preset("dit-xl/2", 256).flops(1)


def test_head_core_and_tail_must_add_up() -> None:
    with pytest.raises(InvalidInput, match="must add up to depth 4"):
        replace(ELIT, interface=replace(ELIT.interface, tail=2))
