"""Several ranks, or several micro-batches, compute what one does at the same global batch."""

from __future__ import annotations

import subprocess
from collections.abc import Callable

import pytest
import torch

from elit_serve.errors import InvalidInput
from elit_serve.trainer.distributed import World, join_world
from elit_serve.trainer.loop import check_world
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

Losses = Callable[[RunDirectory], dict[int, float]]


def assert_close(run: RunDirectory, other: RunDirectory, losses: Losses) -> None:
    assert losses(run) == pytest.approx(losses(other), rel=1e-4)
    ours, theirs = run.load(), other.load()
    for name, expected in theirs.ema.items():
        assert torch.allclose(ours.ema[name], expected, atol=2e-4), name
        assert torch.allclose(ours.model[name], theirs.model[name], atol=2e-4), name


@pytest.mark.parametrize("drawing", ["uniform", "random-drop"])
def test_two_ranks_equal_one(
    drawing: str,
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., subprocess.Popen[str]],
    train_here: Callable[..., RunDirectory],
    read_losses: Losses,
) -> None:
    """The two ranks accumulate two micro-batches each; the level is drawn anew every step, so it must be shared."""
    sections = {"budget": {"drawing": drawing}, "every": {"log": 1, "validation": 8, "samples": 50, "checkpoint": 5}}
    one = train_here(make_recipe(**sections, training={"steps": 12}), "one")

    accumulating = make_recipe(**sections, training={"steps": 12, "accumulation": 2})
    two = RunDirectory(one.path.parent / "two")
    process = start_training(accumulating, two.path, ranks=2)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors

    assert_close(two, one, read_losses)


def test_accumulated_micro_batches_equal_one_big_batch(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses
) -> None:
    whole = train_here(make_recipe(training={"steps": 12}), "whole")
    parts = train_here(make_recipe(training={"steps": 12, "accumulation": 4}), "parts")
    assert_close(parts, whole, read_losses)


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "two", "\u0662"])
def test_a_number_of_ranks_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", text)
    with pytest.raises(InvalidInput, match="WORLD_SIZE"), join_world(torch.device("cpu")):
        pass


def test_a_batch_that_does_not_divide_among_ranks_and_micro_batches_is_refused(
    make_recipe: Callable[..., Recipe],
) -> None:
    with pytest.raises(InvalidInput, match=r"training\.batch: 8 is not allowed; a multiple of 12, ranks times"):
        check_world(make_recipe(training={"accumulation": 4}), World(device=torch.device("cpu"), size=3))
