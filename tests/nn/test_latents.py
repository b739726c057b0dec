"""Figures of latents: hand-made ones, those of fresh models, and that looking leaves a model as it was."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from elit_serve.nn import DiT, DiTSpec, ElitDiT, ElitDiTSpec, InterfaceSpec
from elit_serve.nn.latents import LatentPass, effective_number, mean_cosine, rank_of_differences, watch_latents

SPEC = ElitDiTSpec(
    channels=3,
    height=16,
    width=16,
    patch=2,
    dim=64,
    depth=4,
    num_heads=2,
    num_classes=5,
    interface=InterfaceSpec(window=(4, 4), head=1, core=2, tail=1),
)
J = 16


def fresh(start: str, reach: str = "all") -> ElitDiT:
    torch.manual_seed(0)
    return ElitDiT(replace(SPEC, interface=replace(SPEC.interface, start=start, reach=reach)))


def inputs(batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, 16, 16, generator=generator), torch.full((batch,), 0.5), torch.arange(batch)


def test_latents_that_are_all_the_same_have_cosine_1_and_differ_in_no_direction() -> None:
    alike = torch.randn(1, 1, 1, 7).expand(2, 3, 5, 7)
    assert mean_cosine(alike) == pytest.approx(1, abs=1e-6)
    assert rank_of_differences(alike) == 0


def test_latents_at_right_angles_have_cosine_0_and_differ_in_all_directions_but_one() -> None:
    orthogonal = 3 * torch.eye(5, 7).expand(2, 3, 5, 7)
    assert mean_cosine(orthogonal) == pytest.approx(0, abs=1e-6)
    assert rank_of_differences(orthogonal) == pytest.approx(4, abs=1e-4)


def test_latents_on_one_line_differ_in_one_direction() -> None:
    line = torch.tensor([[1.0, 0], [-1, 0], [2, 0], [-5, 0]]) + torch.tensor([0.0, 1])
    assert rank_of_differences(line) == pytest.approx(1, abs=1e-3)
    assert mean_cosine(torch.tensor([[1.0, 0], [-2, 0]])) == pytest.approx(-1)


def test_groups_are_averaged() -> None:
    groups = torch.stack([torch.eye(4), torch.ones(4, 4)])
    assert mean_cosine(groups) == pytest.approx(0.5, abs=1e-6)
    assert rank_of_differences(groups) == pytest.approx(1.5, abs=1e-4)


def test_attention_spreads_over_as_many_as_it_is_shared_by() -> None:
    assert effective_number(torch.tensor([[0.25] * 4, [0.5, 0.5, 0, 0]])) == pytest.approx(3)
    assert effective_number(torch.eye(4)) == 1


def test_one_latent_alone_is_like_no_other() -> None:
    ones = torch.ones(2, 3, 1, 4)
    seen = LatentPass(reads=ones / 4, writes=ones.mT, after_read=ones, after_core=ones)
    assert seen.figures().present() == {"tokens_per_latent": pytest.approx(4), "latents_per_token": 1}


def with_open_read(start: str) -> ElitDiT:
    """A fresh model whose latents hold little beside what they read, as training makes them."""
    model = fresh(start)
    for gate in model.read.gates():
        gate.data.fill_(10)
    return model


def test_latents_that_start_at_their_places_are_more_distinct_than_those_that_start_alike() -> None:
    apart, alike = (watch_latents(with_open_read(start), *inputs(), J).figures() for start in ("places", "alike"))
    assert apart.tokens_per_latent < 4 < 12 < alike.tokens_per_latent
    for name in ("after_read", "after_core"):
        assert apart.present()[f"cosine_{name}"] < 0.3 < alike.present()[f"cosine_{name}"]
        assert apart.present()[f"rank_{name}"] > 8 > alike.present()[f"rank_{name}"]


def test_latents_that_read_the_mean_of_their_group_are_nearly_the_same() -> None:
    model = with_open_read("alike")
    model.read.attention.q_norm.weight.data.zero_()  # every product of query and key is zero
    figures = watch_latents(model, *inputs(), J).figures().present()
    assert figures["tokens_per_latent"] == pytest.approx(16, rel=1e-4)
    assert figures["cosine_after_core"] > 0.95


@pytest.mark.parametrize(("reach", "read_at_2"), [("all", J), ("prefix", 2)])
def test_a_pass_holds_what_read_made_and_what_ran_through_the_core(reach: str, read_at_2: int) -> None:
    seen = watch_latents(fresh("places", reach), *inputs(), 2)
    assert seen.reads.shape == (3, 4, read_at_2, 16)
    assert seen.writes.shape == (3, 4, 16, read_at_2)
    assert seen.after_read.shape == (3, 4, read_at_2, 64)
    assert seen.after_core.shape == (3, 4, 2, 64)
    for attention in (seen.reads, seen.writes):
        torch.testing.assert_close(attention.sum(-1), torch.ones(attention.shape[:-1]))
    torch.testing.assert_close(seen.after_core, seen.after_read[:, :, :2])  # the blocks of a fresh core do nothing
    assert (watch_latents(fresh("places", reach), *inputs(), 1).figures().rank_after_read is None) == (
        reach == "prefix"
    )


@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_in_bfloat16_is_looked_at_in_float32(autocast: bool) -> None:
    exact = watch_latents(fresh("places"), *inputs(), J).figures().present()
    model = fresh("places") if autocast else fresh("places").to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        seen = watch_latents(model, *inputs(), J)
        rounded = seen.figures().present()
    assert {tensor.dtype for tensor in vars(seen).values()} == {torch.float32}
    torch.testing.assert_close(seen.reads.sum(-1), torch.ones(3, 4, J))
    assert rounded == pytest.approx(exact, rel=0.05, abs=0.01)


def test_a_plain_dit_has_no_latents_to_look_at() -> None:
    fields = {name: value for name, value in vars(SPEC).items() if name != "interface"}
    assert DiT(DiTSpec(**fields)).latent_parts() is None


@pytest.fixture
def counted(fresh_compiler: None) -> list[int]:  # noqa: ARG001
    """How many graphs a compiler was given."""
    return []


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_looking_leaves_a_compiled_model_as_it_was_and_compiles_nothing(counted: list[int]) -> None:
    model = fresh("places")
    uncompiled = watch_latents(model, *inputs(), 4)

    def compile_nothing(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        counted.append(len(counted))
        return graph.forward

    for module in model.compilable():
        module.compile(dynamic=True, backend=compile_nothing)
    before, graphs = model(*inputs(), 4), len(counted)
    seen = watch_latents(model, *inputs(), 4)
    assert torch.equal(model(*inputs(), 4), before)
    assert len(counted) == graphs
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(torch.equal(value, getattr(uncompiled, name)) for name, value in vars(seen).items())
