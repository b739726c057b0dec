"""What U-ViT and HDiT add to a DiT: long skips, and a middle on a quarter of the tokens."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.nn import BackboneSpec, build
from elit_serve.nn.backbones.elit import InterfaceSpec
from elit_serve.nn.backbones.elit_hdit import KIND as ELIT_HDIT
from elit_serve.nn.backbones.elit_hdit import ElitHDiT, ElitHDiTSpec
from elit_serve.nn.backbones.elit_uvit import KIND as ELIT_UVIT
from elit_serve.nn.backbones.elit_uvit import ElitUViT, ElitUViTSpec
from elit_serve.nn.backbones.hdit import KIND as HDIT
from elit_serve.nn.backbones.hdit import Down, HDiT, HDiTSpec, Up
from elit_serve.nn.backbones.uvit import KIND as UVIT
from elit_serve.nn.backbones.uvit import UViT, run_with_skips
from elit_serve.nn.interface import spread_places
from elit_serve.nn.latents import watch_latents

REACHES = ("all", "prefix")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([0.2, 0.7]), torch.tensor([0, 2])


def randomised(spec: BackboneSpec) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(spec).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


class Add(torch.nn.Module):
    """Stands for a block: adds a number."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def forward(self, stream: Tensor, modulation: Tensor, rope: Tensor) -> Tensor:  # noqa: ARG002
        return stream + self.number


class Joined(torch.nn.Module):
    """Stands for a skip: keeps what it was given, and passes the stream on."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[float] = []

    def forward(self, stream: Tensor, kept: Tensor) -> Tensor:
        self.given += [float(stream), float(kept)]
        return stream


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [(5, [[111, 11], [1111, 1]]), (6, [[1111, 11], [11111, 1]]), (2, []), (1, [])],
)
def test_the_last_block_joins_what_the_first_made(blocks: int, expected: list[list[float]]) -> None:
    """Blocks add 1, 10, 100, ...; the one or two in the middle join nothing."""
    skips = [Joined() for _ in expected]
    modulations = iter([torch.zeros(1)] * blocks)
    end = run_with_skips([Add(10.0**i) for i in range(blocks)], skips, torch.zeros(1), modulations, torch.zeros(1))
    assert [skip.given for skip in skips] == expected
    assert float(end) == sum(10**i for i in range(blocks))  # type: ignore[arg-type]


def test_each_skip_of_a_uvit_matters_and_a_fresh_one_passes_the_stream() -> None:
    model = randomised(UVIT.tiny)
    assert isinstance(model, UViT)
    before = model(*inputs())
    for skip in model.skips:
        skip.start()
    started = model(*inputs())
    assert not torch.allclose(started, before, atol=1e-4)
    model.skips[0].linear.weight[:, 32:] += 0.1 * torch.eye(32)
    assert not torch.allclose(model(*inputs()), started, atol=1e-4)


@pytest.mark.parametrize("reach", REACHES)
@pytest.mark.parametrize("level", [1, 5, 8])
def test_skips_of_an_elastic_uvit_join_what_is_as_long(reach: str, level: int) -> None:
    spec = ELIT_UVIT.tiny
    assert isinstance(spec, ElitUViTSpec)
    model = randomised(replace(spec, interface=replace(spec.interface, reach=reach)))
    assert isinstance(model, ElitUViT)
    lengths = []
    for skip in [*model.skips, *model.core_skips]:
        skip.register_forward_hook(lambda _, given, made: lengths.append((given[1].shape[1], made.shape[1])))
    model(*inputs(), level)
    assert sorted(lengths) == sorted([(64, 64), (8 * level, 8 * level)])


def test_with_an_uneven_split_the_outermost_blocks_have_skips() -> None:
    """Of a head of three and a tail of one, the first block of the head is joined."""
    spec = ELIT_UVIT.tiny
    assert isinstance(spec, ElitUViTSpec)
    model = randomised(replace(spec, depth=5, interface=InterfaceSpec(window=(2, 4), head=3, core=1, tail=1)))
    assert isinstance(model, ElitUViT)
    seen: dict[str, Tensor] = {}
    model.head[0].register_forward_hook(lambda _, __, made: seen.update(made=made.settled()))
    model.skips[0].register_forward_hook(lambda _, given, __: seen.update(joined=given[1]))
    model(*inputs(), 3)
    assert torch.equal(seen["made"], seen["joined"])
    assert len(model.core_skips) == 0


@pytest.mark.parametrize("kind", [ELIT_UVIT, ELIT_HDIT], ids=["uvit", "hdit"])
def test_latents_of_a_fresh_model_are_still_the_tokens_that_they_started_as(kind: object) -> None:
    """Skips and quads leave them alone at first: each token would read the latent of its place most."""
    torch.manual_seed(0)
    spec = kind.tiny  # type: ignore[attr-defined]
    places = spread_places((2, 4))
    seen = watch_latents(build(replace(spec, dim=64)), *inputs(), 8)
    assert seen.reads.mean((0, 1)).argmax(-1).tolist() == places
    assert seen.writes.mean((0, 1)).argmax(-1).tolist() == [places.index(token) for token in range(8)]


def test_four_tokens_go_down_into_one_and_come_up_as_four() -> None:
    down, up = Down(2), Up(2)
    with torch.no_grad():
        for linear in (down.linear, up.linear):
            linear.weight.zero_()
            linear.bias.zero_()
        down.linear.weight[0, ::2] = 1  # the sum of what four tokens have first
        up.linear.weight[::2, 0] = 1  # back to each of them
        tokens = torch.arange(10.0).repeat_interleave(2).view(1, 10, 2)  # two groups of five
        quads = down(tokens, 2)
        assert quads[0, :, 0].tolist() == [0 + 1 + 2 + 3, 4, 5 + 6 + 7 + 8, 9]
        came_up = up(quads, tokens, 2) - tokens
    assert came_up[0, :, 0].tolist() == [6, 6, 6, 6, 4, 26, 26, 26, 26, 9]
    assert not came_up[0, :, 1].any()


def test_a_quad_of_a_plain_hdit_is_two_by_two_patches() -> None:
    model = randomised(HDIT.tiny)
    assert isinstance(model, HDiT)
    seen: list[Tensor] = []
    model.down.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model.blocks[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x, t, condition = inputs()
    corner = x.clone()
    corner[..., :4, 4:8] += 1  # 2 x 2 patches of 2 x 2 pixels: the second quad of the first row
    for each in (x, corner):
        model(each, t, condition)
    changed = (seen[0] != seen[2]).any(dim=(0, 2))
    assert changed.nonzero().flatten().tolist() == [4, 5, 6, 7]
    assert model.spec.num_tokens // 4 == model.layout(16, 16, x.device).group_rope.shape[1]


@pytest.mark.parametrize("level", [1, 3, 4, 5, 8])
def test_wide_blocks_run_on_as_many_quads_as_a_level_fills(level: int) -> None:
    model = randomised(ELIT_HDIT.tiny)
    assert isinstance(model, ElitHDiT)
    seen: list[torch.Size] = []
    model.core[1].register_forward_pre_hook(lambda _, given: seen.append(given[0].shape))
    model(*inputs(), level)
    assert seen == [(2, 8 * -(-level // 4), 64)]


@pytest.mark.parametrize("level", range(1, 9))
def test_of_a_prefix_no_quad_holds_latents_that_were_dropped(level: int) -> None:
    spec = ELIT_HDIT.tiny
    assert isinstance(spec, ElitHDiTSpec)
    model = randomised(replace(spec, interface=replace(spec.interface, reach="prefix")))
    other = copy.deepcopy(model)
    other.latents[level:] = torch.randn(8 - level, 32)
    assert torch.equal(other(*inputs(), level), model(*inputs(), level))


@pytest.mark.parametrize("kind", [ELIT_UVIT, ELIT_HDIT], ids=["uvit", "hdit"])
@pytest.mark.parametrize("change", [{"positions": "learned"}, {"zeros_between": 1}])
def test_they_run_without_rope_and_with_zeros_between(kind: object, change: dict[str, object]) -> None:
    model = randomised(replace(kind.tiny, **change))  # type: ignore[attr-defined]
    order = torch.randperm(8)
    for level in (1, 6, 8):
        assert model(*inputs(), level, order).isfinite().all()


@pytest.mark.parametrize(("wide", "depth"), [(3, 4), (4, 4), (2, 3), (3, 3)])
def test_wide_blocks_have_as_many_others_before_as_after(wide: int, depth: int) -> None:
    spec = HDIT.tiny
    assert isinstance(spec, HDiTSpec)
    with pytest.raises(InvalidInput, match="equally many") as caught:
        replace(spec, wide=wide, depth=depth)
    assert caught.value.field == "wide"


def test_in_an_elastic_hdit_wide_blocks_are_of_the_core() -> None:
    spec = ELIT_HDIT.tiny
    assert isinstance(spec, ElitHDiTSpec)
    with pytest.raises(InvalidInput, match="3 blocks of the core"):
        replace(spec, wide=3)


def test_a_grid_with_half_a_quad_is_refused() -> None:
    with pytest.raises(InvalidInput, match="multiple of 4"):
        HDIT.tiny.check_size(18, 16)
