"""Blocks compiled one by one compute what they do uncompiled, whatever level comes, in few graphs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elit_serve.files.config import ClassesConfig
from elit_serve.nn import ElitDiT, build
from elit_serve.nn.compiling import compile_blocks
from elit_serve.trainer.loss import rectified_flow_loss
from elit_serve.trainer.recipe import Recipe

LEVELS = (16, 3, 7, 12, 1, 5, 16)

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("fresh_compiler")]  # the compiler's own


@pytest.fixture
def eager(make_recipe: Callable[..., Recipe]) -> ElitDiT:
    """4 groups of 16 latents and no weight that is zero."""
    interface = {"window": [4, 4], "head": 1, "core": 1, "tail": 1}
    torch.manual_seed(0)
    recipe = make_recipe(backbone={"patch": 2, "interface": interface})
    model = build(recipe.backbone.spec(ClassesConfig(names=("daisy", "rose", "tulip"))))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    assert isinstance(model, ElitDiT)
    return model


def loss_and_gradient(model: ElitDiT, level: int | tuple[int, int]) -> tuple[float, Tensor]:
    generator = torch.Generator().manual_seed(level if isinstance(level, int) else sum(level))
    data, noise = torch.randn(2, 4, *model.spec.sample_shape, generator=generator)
    t, label = torch.rand(4, generator=generator), torch.tensor([0, 1, 2, 3])
    model.zero_grad()
    loss = rectified_flow_loss(model, data, noise, t, label, level)
    torch.autograd.backward(loss)
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat(gradients)


def assert_equal_at_every_level(compiled: ElitDiT, eager: ElitDiT) -> None:
    for level in LEVELS:
        expected_loss, expected_gradient = loss_and_gradient(eager, level)
        loss, gradient = loss_and_gradient(compiled, level)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert torch.allclose(gradient, expected_gradient, atol=1e-5)


def num_graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def test_a_compiled_block_trains_as_an_uncompiled_one_at_every_level(eager: ElitDiT) -> None:
    """One block stands for all, since compiling takes long; those of the core see another length at each level."""
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled.core[:1])
    assert_equal_at_every_level(compiled, eager)
    assert 1 <= num_graphs() <= 3


def test_read_and_write_are_traced_a_few_times_and_not_once_per_level(eager: ElitDiT) -> None:
    """Tracing alone decides how often something is compiled, so no machine code is made here."""
    compiled = copy.deepcopy(eager)
    compile_blocks([compiled.read, compiled.write], backend="eager")
    assert_equal_at_every_level(compiled, eager)
    assert 2 <= num_graphs() <= 6


def test_two_levels_of_a_batch_are_traced_as_often_as_one(eager: ElitDiT) -> None:
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled.compilable(), backend="eager")
    for level in (16, 3, 1):
        loss_and_gradient(compiled, level)
    of_one = num_graphs()
    for levels in ((16, 3), (16, 1), (16, 16)):
        expected_loss, expected_gradient = loss_and_gradient(eager, levels)
        loss, gradient = loss_and_gradient(compiled, levels)
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert torch.allclose(gradient, expected_gradient, atol=1e-5)
    assert num_graphs() == of_one <= 9
