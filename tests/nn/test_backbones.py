"""Whole backbones: any level, any resolution, and what must start at zero."""

from __future__ import annotations

import copy
import itertools
import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from elit_serve.errors import InvalidInput
from elit_serve.evaluation.report.attention import zero_tokens
from elit_serve.nn import BackboneSpec, DiTSpec, ElitDiT, ElitDiTSpec, InterfaceSpec, InvalidSpec, build, parse_spec
from elit_serve.nn.backbones.transformer import TransformerSpec
from elit_serve.nn.fields import as_table
from elit_serve.nn.interface import spread_places
from elit_serve.nn.latents import watch_latents

ELIT = ElitDiTSpec(
    channels=3,
    height=16,
    width=16,
    patch=2,
    dim=64,
    depth=4,
    num_heads=2,
    num_classes=5,
    interface=InterfaceSpec(window=(2, 2), head=1, core=2, tail=1),
)


def plain(spec: ElitDiTSpec) -> DiTSpec:
    """The same without its interface."""
    return DiTSpec(**{name: value for name, value in vars(spec).items() if name != "interface"})


PLAIN = plain(ELIT)
PREFIX = replace(ELIT, interface=replace(ELIT.interface, reach="prefix"))
ALIKE = replace(ELIT, interface=replace(ELIT.interface, start="alike", reach="prefix"))
SPREAD = replace(ELIT, zeros_between=1, positions="learned")
PREFIX_SPREAD = replace(SPREAD, interface=PREFIX.interface)
KNOWING = replace(ELIT, interface=replace(ELIT.interface, knows="level"))
EVERY = [ELIT, PREFIX, ALIKE, KNOWING, PLAIN, SPREAD, PREFIX_SPREAD, plain(SPREAD)]
LEVELS = range(1, 5)


def randomised(spec: BackboneSpec) -> Any:
    """A model none of whose parameters are zero, so that everything matters."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build(spec).eval().requires_grad_(False)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


@pytest.fixture(scope="module", params=[ELIT, PREFIX, ALIKE, KNOWING], ids=["all", "prefix", "alike", "knowing"])
def elit(request: pytest.FixtureRequest) -> ElitDiT:
    model = randomised(request.param)
    assert isinstance(model, ElitDiT)
    return model


@pytest.fixture(scope="module")
def prefix() -> ElitDiT:
    model = randomised(PREFIX)
    assert isinstance(model, ElitDiT)
    return model


def inputs(batch: int = 2, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, height, width, generator=generator)
    return x, torch.linspace(0.1, 0.9, batch), torch.arange(batch) % 5


@pytest.mark.parametrize("spec", EVERY)
def test_a_fresh_model_predicts_zero_everywhere(spec: BackboneSpec) -> None:
    assert not build(spec)(*inputs(), 1).any()


def test_every_level_runs_and_gives_its_own_velocity(elit: ElitDiT) -> None:
    velocities = [elit(*inputs(), level) for level in LEVELS]
    for velocity in velocities:
        assert velocity.shape == (2, 3, 16, 16)
        assert torch.isfinite(velocity).all()
    for lower, higher in pairwise(velocities):
        assert not torch.allclose(lower, higher, atol=1e-4)


@pytest.mark.parametrize("level", [0, 5])
def test_a_level_outside_the_latents_is_our_own_bug(elit: ElitDiT, level: int) -> None:
    with pytest.raises(AssertionError):
        elit(*inputs(), level)


def test_several_levels_in_one_call_equal_separate_calls(elit: ElitDiT) -> None:
    x, t, label = inputs()
    together = elit(x.repeat(3, 1, 1, 1), t.repeat(3), label.repeat(3), [4, 1, 2])
    for part, level in zip(together.chunk(3), [4, 1, 2], strict=True):
        torch.testing.assert_close(part, elit(x, t, label, level), atol=1e-5, rtol=1e-4)


def test_a_batch_equals_its_samples_alone(elit: ElitDiT) -> None:
    x, t, label = inputs(batch=3)
    together = elit(x, t, label, 3)
    for i in range(3):
        alone = elit(x[i : i + 1], t[i : i + 1], label[i : i + 1], 3)
        torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("level", LEVELS)
def test_of_a_prefix_a_level_does_not_depend_on_the_latents_that_it_drops(prefix: ElitDiT, level: int) -> None:
    other = copy.deepcopy(prefix)
    other.latents[level:] = torch.randn(4 - level, 64)
    assert torch.equal(other(*inputs(), level), prefix(*inputs(), level))
    if level < 4:
        assert not torch.equal(other(*inputs(), 4), prefix(*inputs(), 4))


def test_with_reach_all_what_the_core_drops_is_written_as_it_was_read() -> None:
    model = randomised(ELIT)
    other = copy.deepcopy(model)
    other.latents[3] = torch.randn(64)
    seen: list[Tensor] = []
    for each in (model, other):
        each.core[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    changed = [each(*inputs(), 2) for each in (model, other)]
    assert torch.equal(*seen), "the core sees the first two latents of each group"
    assert seen[0].shape == (2, 16 * 2, 64)
    assert not torch.allclose(*changed, atol=1e-4), "Write sees the last one too"


def test_both_reaches_are_the_same_at_the_full_level(prefix: ElitDiT) -> None:
    model = randomised(ELIT)
    assert torch.equal(model(*inputs(), 4), prefix(*inputs(), 4))
    assert not torch.allclose(model(*inputs(), 3), prefix(*inputs(), 3), atol=1e-4)


def test_a_model_that_knows_its_level_is_modulated_by_it() -> None:
    model = randomised(KNOWING)
    before = [model(*inputs(), level) for level in (2, 3)]
    model.level_embed.weight[1] += 1  # of level 2
    assert not torch.allclose(model(*inputs(), 2), before[0], atol=1e-4)
    assert torch.equal(model(*inputs(), 3), before[1])


def test_another_order_of_the_latents_keeps_other_ones(elit: ElitDiT) -> None:
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(elit(*inputs(), 4, order), elit(*inputs(), 4), atol=1e-5, rtol=1e-4)  # a set
    assert not torch.allclose(elit(*inputs(), 2, order), elit(*inputs(), 2), atol=1e-4)  # another prefix


def test_latents_that_stand_alike_are_told_apart_by_their_vectors_alone() -> None:
    model, order = randomised(ALIKE), torch.tensor([2, 0, 3, 1])
    permuted = copy.deepcopy(model)
    permuted.latents.copy_(model.latents[order])
    assert torch.equal(model(*inputs(), 2, order), permuted(*inputs(), 2))


def test_each_latent_starts_as_one_token_of_its_group() -> None:
    """Before any training it reads that token most, and that token would read it most."""
    spec = replace(ELIT, interface=replace(ELIT.interface, window=(4, 4)))
    torch.manual_seed(0)
    model = build(spec).requires_grad_(False)
    assert isinstance(model, ElitDiT)
    places = spread_places(spec.window)
    seen = watch_latents(model, *inputs(), 16)
    assert seen.reads.mean((0, 1)).argmax(-1).tolist() == places
    latents_of_tokens = [places.index(token) for token in range(16)]
    assert seen.writes.mean((0, 1)).argmax(-1).tolist() == latents_of_tokens


@pytest.mark.parametrize(("height", "width"), [(8, 8), (16, 32), (24, 20), (4, 4)])
def test_the_same_weights_run_at_any_multiple_of_the_window(elit: ElitDiT, height: int, width: int) -> None:
    for level in LEVELS:
        velocity = elit(*inputs(1, height, width), level)
        assert velocity.shape == (1, 3, height, width)
        assert torch.isfinite(velocity).all()


@pytest.mark.parametrize(("height", "width", "field"), [(18, 16, "height"), (16, 10, "width"), (2, 4, "height")])
def test_other_sizes_are_refused_with_the_step(elit: ElitDiT, height: int, width: int, field: str) -> None:
    with pytest.raises(InvalidInput, match="multiple of 4") as caught:
        elit(*inputs(1, height, width), 1)
    assert caught.value.field == field


@pytest.mark.parametrize("spec", EVERY)
def test_time_class_and_every_pixel_matter(spec: BackboneSpec) -> None:
    model = randomised(spec)
    x, t, label = inputs(1)
    base = model(x, t, label, 1)
    corner = x.clone()
    corner[..., 0, 0] += 1
    null = model.null_like(label)
    for changed in (model(x, t + 0.1, label, 1), model(x, t, null, 1), model(corner, t, label, 1)):
        assert not torch.allclose(base, changed, atol=1e-4)


@pytest.mark.parametrize("spec", EVERY)
def test_gradients_reach_every_parameter(spec: BackboneSpec) -> None:
    model = randomised(spec).requires_grad_(True)
    model(*inputs(), model.spec.latents_per_group).square().mean().backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


def test_a_model_that_sampled_first_can_still_learn() -> None:
    model = randomised(ELIT)
    with torch.inference_mode():
        model(*inputs(), 2)
    model.requires_grad_(True)
    model(*inputs(), 2).square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_bfloat16_stays_near_float32(elit: ElitDiT) -> None:
    exact = elit(*inputs(), 4)
    rough = randomised(elit.spec).to(torch.bfloat16)(*inputs(), 4)
    assert rough.dtype == torch.bfloat16
    assert float((rough.float() - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dim": 60}, "num_heads"),
        ({"depth": 5}, "split"),
        ({"height": 18}, "height"),
        ({"channels": 0}, "channels"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_specs_that_cannot_be_are_refused_by_name(change: dict[str, int], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        replace(ELIT, **change)  # type: ignore[arg-type]
    assert caught.value.field == field


@pytest.mark.parametrize(("window", "split"), [((0, 2), (1, 2, 1)), ((2, 2), (2, 0, 2)), ((2, 2), (-1, 2, 1))])
def test_interfaces_that_cannot_be_are_refused(window: tuple[int, int], split: tuple[int, int, int]) -> None:
    with pytest.raises(InvalidInput):
        InterfaceSpec(window=window, head=split[0], core=split[1], tail=split[2])


@pytest.mark.parametrize("spec", [SPREAD, plain(SPREAD)])
def test_zeros_between_patches_are_tokens_and_no_part_of_the_sample(spec: BackboneSpec) -> None:
    model = randomised(spec)
    assert spec.num_tokens == 4 * ELIT.num_tokens
    assert spec.sample_shape == ELIT.sample_shape
    assert spec.flops(1).prefix > 4 * replace(spec, zeros_between=0, positions="rope").flops(1).prefix
    seen: list[Tensor] = []
    model.spatial_blocks()[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert model(*inputs(), 1).shape == (2, 3, 16, 16)
    assert seen[0].shape == (2, spec.num_tokens, 64)


@pytest.mark.parametrize("spec", [ELIT, PLAIN])
def test_the_model_sees_zeros_to_the_right_of_each_patch_and_below_it(spec: TransformerSpec) -> None:
    """As one without them sees a sample of twice the size that is spread out by hand."""
    x, t, label = inputs()
    wide = torch.zeros(2, 3, 32, 32)
    for row, column in itertools.product(range(0, 16, 2), repeat=2):
        wide[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = x[:, :, row : row + 2, column : column + 2]
    velocity = randomised(replace(spec, zeros_between=1))(x, t, label, 1)
    of_wide = randomised(replace(spec, height=32, width=32))(wide, t, label, 1)
    for row, column in itertools.product(range(0, 16, 2), repeat=2):
        real = of_wide[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
        torch.testing.assert_close(velocity[:, :, row : row + 2, column : column + 2], real)


def test_a_patch_of_zeros_is_the_bias_of_the_embedding_at_its_position() -> None:
    model = randomised(SPREAD)
    tokens, _ = model.embed(*inputs())
    of_zeros = model.patch_embed.bias + model.positions
    zeros = (tokens == of_zeros).all(dim=(0, 2))
    assert torch.equal(zeros, zero_tokens(SPREAD, 16, 16))
    assert zeros.view(SPREAD.num_groups, -1).sum(dim=1).tolist() == [3] * SPREAD.num_groups  # and one is real, in each


@pytest.mark.parametrize(("between", "window", "in_group"), [(1, (4, 4), 4), (2, (3, 3), 1), (3, (4, 8), 2)])
def test_every_group_holds_patches_of_the_sample(between: int, window: tuple[int, int], in_group: int) -> None:
    spec = replace(ELIT, zeros_between=between, interface=replace(ELIT.interface, window=window))
    real = ~zero_tokens(spec, 16, 16)
    assert real.sum() == 64
    assert set(real.view(spec.num_groups, -1).sum(dim=1).tolist()) == {in_group}


def test_with_zeros_between_a_window_takes_fewer_patches() -> None:
    spec = replace(SPREAD, positions="rope", interface=replace(ELIT.interface, window=(4, 4)))
    spec.check_size(4, 20)  # 2 x 10 patches, 4 x 20 tokens
    with pytest.raises(InvalidInput, match="multiple of 4"):
        spec.check_size(6, 20)


def test_learned_positions_tell_the_latents_of_all_groups_apart_in_the_core() -> None:
    """Of one picture that is the same everywhere, read by latents that start alike."""
    model = randomised(replace(SPREAD, interface=replace(ELIT.interface, start="alike")))
    torch.nn.init.zeros_(model.positions)
    torch.nn.init.zeros_(model.latents)
    seen: list[Tensor] = []
    model.core[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    x, t, label = torch.ones(1, 3, 16, 16), torch.tensor([0.5]), torch.tensor([0])
    model(x, t, label, 4)
    assert len(torch.unique(seen[0], dim=0)) == SPREAD.num_tokens
    torch.nn.init.zeros_(model.core_positions)
    model(x, t, label, 4)
    torch.testing.assert_close(seen[1], seen[1][:1].expand_as(seen[1]))


@pytest.mark.parametrize("reach", ["all", "prefix"])
def test_the_core_sees_the_positions_of_the_latents_that_it_keeps(reach: str) -> None:
    model = randomised(replace(SPREAD, interface=replace(ELIT.interface, reach=reach)))
    seen: list[Tensor] = []
    model.core[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    order = torch.tensor([2, 0, 3, 1])
    positions = model.core_positions.clone()
    for positioned in (positions, torch.zeros_like(positions)):
        model.core_positions.copy_(positioned)
        model(*inputs(), 2)
        model(*inputs(), 2, order)
    of_groups = positions.view(-1, 4, 64)
    torch.testing.assert_close(seen[0] - seen[2], of_groups[:, :2].flatten(0, 1), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen[1] - seen[3], of_groups[:, order[:2]].flatten(0, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", [replace(ELIT, positions="learned"), SPREAD, PREFIX_SPREAD])
def test_without_rope_too_levels_differ_and_a_set_of_latents_has_no_order(spec: BackboneSpec) -> None:
    model = randomised(spec)
    for lower, higher in pairwise(model(*inputs(), level) for level in LEVELS):
        assert not torch.allclose(lower, higher, atol=1e-4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(model(*inputs(), 4, order), model(*inputs(), 4), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(model(*inputs(), 2, order), model(*inputs(), 2), atol=1e-4)


def test_only_learned_positions_give_latents_any() -> None:
    assert build(ELIT).core_positions is None
    positions = build(SPREAD).requires_grad_(False).core_positions
    assert positions.shape == (SPREAD.num_tokens, 64)
    assert 0.019 < float(positions.std()) < 0.021


def test_learned_positions_tell_tokens_apart_and_replace_rope() -> None:
    model = randomised(replace(PLAIN, positions="learned"))
    x, t, label = torch.ones(1, 3, 16, 16), torch.tensor([0.5]), torch.tensor([0])
    patches = model(x, t, label)[0, :, ::2, ::2].flatten(1).T  # [N, 3], one element of each patch
    assert len({tuple(patch.tolist()) for patch in patches}) == len(patches)
    torch.nn.init.zeros_(model.positions)
    patches = model(x, t, label)[0, :, ::2, ::2].flatten(1).T
    torch.testing.assert_close(patches, patches[:1].expand_as(patches))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"zeros_between": -2}, "zeros_between: -2"),
        ({"zeros_between": 2}, "at least 3 tokens a side"),
        ({"zeros_between": 1, "height": 18, "width": 17}, "a multiple of 2"),
        ({"positions": "sinusoidal"}, "rope, learned"),
    ],
)
def test_impossible_zeros_and_positions_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        replace(ELIT, **change)


def test_learned_positions_fit_one_size() -> None:
    with pytest.raises(InvalidInput, match="positions are learned for"):
        randomised(SPREAD)(*inputs(height=32, width=32), 1)


@pytest.mark.parametrize("spec", [ELIT, PLAIN, SPREAD, plain(SPREAD)])
def test_a_spec_survives_the_way_through_a_file(spec: BackboneSpec) -> None:
    written = json.loads(json.dumps(spec.config_fields()))
    fields = written["backbone"]
    assert parse_spec(fields.pop("kind"), fields) == spec
    assert written["shapes"] == {"16x16": [3, 16, 16]}
    assert written["latents_per_group"] == spec.latents_per_group


def test_everything_wrong_with_the_fields_of_a_spec_is_told_at_once() -> None:
    fields = {**as_table(ELIT), "dim": "wide", "colour": "red", "interface": {"window": [2], "head": 1, "core": True}}
    del fields["patch"]
    with pytest.raises(InvalidSpec) as caught:
        parse_spec("elit-dit", fields)
    assert {".".join(problem.place): problem.what for problem in caught.value.problems} == {
        "colour": "Extra inputs are not permitted",
        "patch": "Field required",
        "dim": "a whole number from 4 to 16384",
        "interface.window": "2 whole numbers from 1 to 4096",
        "interface.core": "a whole number from 1 to 512",
        "interface.tail": "Field required",
    }
