"""What a run computes and writes: losses, averages, learning rates, curves and sample grids."""

from __future__ import annotations

import io
import json
import re
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from elit_serve.clock import VirtualClock
from elit_serve.engine.autoencoders.pixels import Pixels
from elit_serve.errors import RunError
from elit_serve.files.config import ClassesConfig
from elit_serve.nn import ElitDiT, build
from elit_serve.nn.latents import LatentFigures
from elit_serve.trainer.distributed import World
from elit_serve.trainer.draws import draw_levels, draw_permutation
from elit_serve.trainer.ema import Ema
from elit_serve.trainer.loop import Trainer
from elit_serve.trainer.loss import distilled_loss, rectified_flow_loss, validation_times
from elit_serve.trainer.progress import Reporter
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.sources import open_source

CPU = torch.device("cpu")
ALWAYS_THERE = ("tokens_per_latent", "latents_per_token", "cosine_after_read", "rank_after_read")  # also at level 1
Losses = Callable[[RunDirectory], dict[int, float]]
Log = Callable[[RunDirectory], list[dict[str, Any]]]

GOLDEN_LOSSES = [1.36825, 1.36469, 1.32418, 1.30372, 1.35246, 1.30832, 1.33082, 1.33432]


def test_the_loss_is_the_squared_error_of_the_velocity_at_the_mixed_sample() -> None:
    class Exact(nn.Module):
        """Knows the data, so it can tell the velocity from where it is."""

        def forward(self, x: Tensor, t: Tensor, label: Tensor, level: int) -> Tensor:
            assert (label.tolist(), level) == ([0, 1], 3)
            return (data - x) / (1 - t.view(-1, 1, 1, 1)) + 0.5

    generator = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 2, 3, 4, 4, generator=generator)
    t, label = torch.tensor([0.2, 0.7]), torch.tensor([0, 1])
    assert rectified_flow_loss(Exact(), data, noise, t, label, 3).item() == pytest.approx(0.25, rel=1e-5)


def test_validation_times_are_the_quantiles_of_the_logit_normal_distribution() -> None:
    times = validation_times(101, mean=0.3, std=0.9, device=CPU)
    normal = statistics.NormalDist(0.3, 0.9)
    expected = [normal.inv_cdf((index + 0.5) / 101) for index in range(101)]
    assert torch.logit(times.double()).tolist() == pytest.approx(expected, abs=1e-4)


def test_the_average_follows_its_closed_form_and_warms_up(make_recipe: Callable[..., Recipe]) -> None:
    model = build(make_recipe().backbone.spec(ClassesConfig(names=("daisy", "rose", "tulip"))))
    ema = Ema(model, decay=0.5)
    start = [parameter.clone() for parameter in model.parameters()]
    expected, value = 0.0, 0.0
    for step in range(1, 31):
        value = step**0.5
        with torch.no_grad():
            for parameter, at_start in zip(model.parameters(), start, strict=True):
                parameter.copy_(at_start + value)
        ema.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert decay == 0.5
    assert 2 / 11 < 0.5  # the first steps were averaged faster than the recipe's decay
    for parameter, at_start in zip(ema.model.parameters(), start, strict=True):
        assert torch.allclose(parameter, at_start + expected, atol=1e-5)
        assert not parameter.requires_grad


def test_the_learning_rate_warms_up_stays_and_decays(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_log: Log
) -> None:
    recipe = make_recipe(training={"steps": 12}, optimizer={"learning_rate": 1e-3, "warmup_steps": 4, "decay_steps": 5})
    rates = [line["learning_rate"] for line in read_log(train_here(recipe)) if "loss" in line]
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2]
    assert rates == pytest.approx([1e-3 * factor for factor in factors])


def test_the_first_losses_are_the_known_ones(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses
) -> None:
    losses = read_losses(train_here(make_recipe(training={"steps": 8})))
    assert list(losses.values()) == pytest.approx(GOLDEN_LOSSES, rel=1e-3)


@pytest.mark.parametrize("drawing", ["uniform", "random-drop", "fixed"])
def test_a_few_pictures_are_learned(
    drawing: str,
    make_recipe: Callable[..., Recipe],
    make_photographs: Callable[..., Path],
    train_here: Callable[..., RunDirectory],
    read_log: Log,
    tmp_path: Path,
) -> None:
    data = make_photographs(tmp_path / "few", per_class=4, classes=("daisy",))
    recipe = make_recipe(
        data={"shift": 0, "flip": False, "holdout": 0.25},
        budget={"drawing": drawing},
        sampling={"guidance": {"method": "none"}},
        training={"steps": 120},
        optimizer={"learning_rate": 1e-2, "decay_steps": 30},
        every={"log": 10, "validation": 1000, "samples": 1000, "checkpoint": 1000},
    )
    log = read_log(train_here(recipe, data=data))
    losses = [line["loss"] for line in log if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]
    assert all(loss < 0.75 * losses[0] for loss in log[-1]["validation"].values())


def trainer_with_signal(recipe: Recipe, photographs: Path, folder: Path) -> Trainer:
    """A trainer whose weights are all away from zero, so that every parameter in use has a gradient."""
    source = open_source(recipe, Pixels(), None, photographs, None)
    trainer = Trainer(recipe, source, World(device=CPU), RunDirectory(folder), Pixels())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.learner.model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return trainer


@pytest.mark.parametrize("drawing", ["uniform", "random-drop"])
def test_a_step_trains_the_prefix_or_under_random_drop_a_random_choice_of_latents(
    drawing: str, make_recipe: Callable[..., Recipe], photographs: Path, tmp_path: Path
) -> None:
    tiny = make_recipe()
    trainings = [tiny.training.model_copy(update={"seed": seed}) for seed in range(40)]
    draws = [draw_levels(0, tiny.budget, tiny.levels, training) for training in trainings]
    seeds = [seed for seed, levels in enumerate(draws) if levels == (2,)][:4]
    trained = []
    for seed in seeds:
        recipe = make_recipe(
            backbone={"interface": {"window": [2, 2], "head": 1, "core": 1, "tail": 1, "reach": "prefix"}},
            budget={"drawing": drawing},
            training={"steps": 1, "seed": seed},
            every={"checkpoint": 1000},
        )
        trainer = trainer_with_signal(recipe, photographs, tmp_path / str(seed))
        assert isinstance(trainer.learner.model, ElitDiT)
        before = trainer.learner.model.latents.detach().clone()
        trainer.train(None)
        moved = (trainer.learner.model.latents.detach() != before).any(dim=1)
        trained.append(set(moved.nonzero().flatten().tolist()))
    if drawing == "uniform":
        assert trained == [{0, 1}] * 4
    else:
        assert trained == [set(draw_permutation(0, 4, seed)[:2].tolist()) for seed in seeds]
        assert len(set(map(frozenset, trained))) > 1


def test_two_levels_of_a_batch_learn_as_each_would_alone(
    make_recipe: Callable[..., Recipe], photographs: Path, tmp_path: Path
) -> None:
    """The loss of a batch of two halves is the mean of the halves' own, each at its level."""
    recipe = make_recipe(budget={"full_share": 0.5})
    model = trainer_with_signal(recipe, photographs, tmp_path / "run").learner.model
    data, noise = torch.randn(2, 8, 3, 16, 16)
    t, condition = torch.rand(8), torch.zeros(8, dtype=torch.int64)
    whole = rectified_flow_loss(model, data, noise, t, condition, (4, 2))
    halves = [
        rectified_flow_loss(model, *(part.chunk(2)[half] for part in (data, noise, t, condition)), level)
        for half, level in enumerate((4, 2))
    ]
    torch.testing.assert_close(whole, (halves[0] + halves[1]) / 2, atol=1e-5, rtol=1e-4)


def test_a_distilled_level_learns_what_the_full_one_predicts_and_teaches_it_nothing(
    make_recipe: Callable[..., Recipe], photographs: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(budget={"full_share": 0.5, "distilled": True})
    model = trainer_with_signal(recipe, photographs, tmp_path / "run").learner.model
    samples = torch.randn(8, 3, 16, 16), torch.randn(8, 3, 16, 16), torch.rand(8), torch.zeros(8, dtype=torch.int64)
    half = tuple(part[:4] for part in samples)
    same = distilled_loss(model, *samples, (4, 4))
    torch.testing.assert_close(same, rectified_flow_loss(model, *half, 4) / 2, atol=1e-5, rtol=1e-4)
    at_half = (1 - half[2].view(-1, 1, 1, 1)) * half[1] + half[2].view(-1, 1, 1, 1) * half[0]
    with torch.no_grad():
        gap = (model(at_half, half[2], half[3], 2) - model(at_half, half[2], half[3], 4)).square().mean()
    torch.testing.assert_close(distilled_loss(model, *samples, (4, 2)) - same, gap / 2, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("budget", [{"full_share": 0.5}, {"full_share": 0.3, "elastic_from": 0.5, "distilled": True}])
def test_a_run_with_two_levels_in_a_batch_learns_all_levels(
    budget: dict[str, float],
    make_recipe: Callable[..., Recipe],
    make_photographs: Callable[..., Path],
    train_here: Callable[..., RunDirectory],
    read_log: Log,
    tmp_path: Path,
) -> None:
    data = make_photographs(tmp_path / "few", per_class=4, classes=("daisy",))
    recipe = make_recipe(
        data={"shift": 0, "flip": False, "holdout": 0.25},
        budget=budget,
        training={"steps": 120},
        optimizer={"learning_rate": 1e-2, "decay_steps": 30},
        every={"log": 10, "validation": 1000, "samples": 1000, "checkpoint": 1000},
    )
    log = read_log(train_here(recipe, data=data))
    first = next(line["loss"] for line in log if "loss" in line)
    assert all(loss < 0.75 * first for loss in log[-1]["validation"].values())


def test_a_plain_dit_trains_too_and_tells_nothing_of_latents(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_log: Log
) -> None:
    output = io.StringIO()
    run = train_here(make_recipe(backbone={"interface": None}, training={"steps": 2}), output=output)
    assert run.load().state.step == 2
    assert "latents" not in output.getvalue()
    assert set(read_log(run)[-1]) == {"step", "validation"}


def test_bfloat16_stays_close_to_float32(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses
) -> None:
    exact = read_losses(train_here(make_recipe(training={"steps": 5}), "exact"))
    rounded = train_here(make_recipe(training={"steps": 5, "precision": "bfloat16"}), "rounded")
    assert list(read_losses(rounded).values()) == pytest.approx(list(exact.values()), rel=0.02)
    assert {tensor.dtype for tensor in rounded.load().model.values()} == {torch.float32}


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    recipe = make_recipe(optimizer={"warmup_steps": 0}, every={"log": 1000, "checkpoint": 10})
    far_too_fast = recipe.optimizer.model_copy(update={"learning_rate": 1e30})  # no file may say so
    recipe = recipe.model_copy(update={"optimizer": far_too_fast})
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step 10; lower the learning rate"):
        train_here(recipe)
    assert RunDirectory(tmp_path / "run").steps() == []


def test_the_log_holds_each_step_and_the_validation_loss_of_each_shown_level(
    finished_run: RunDirectory, read_log: Log, read_losses: Losses
) -> None:
    assert list(read_losses(finished_run)) == list(range(1, 61))
    validation = {line["step"]: line["validation"] for line in read_log(finished_run) if "validation" in line}
    assert list(validation) == [25, 50, 60]
    assert all(list(losses) == ["1", "2", "4"] for losses in validation.values())
    assert validation[60]["4"] < validation[25]["4"]


def test_the_log_tells_at_each_validation_what_the_latents_of_each_shown_level_do(
    finished_run: RunDirectory, read_log: Log
) -> None:
    latents = {line["step"]: line["latents"] for line in read_log(finished_run) if "validation" in line}
    assert list(latents) == [25, 50, 60]
    assert list(latents[60]) == ["1", "2", "4"]
    assert set(latents[60]["1"]) == set(ALWAYS_THERE)  # one latent in the core is like no other
    assert set(latents[60]["4"]) == {*ALWAYS_THERE, "cosine_after_core", "rank_after_core"}
    assert latents[25] != latents[60]
    assert all(1 <= figures["tokens_per_latent"] <= 4 for figures in latents[60].values())


def test_looking_at_latents_changes_no_loss(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses
) -> None:
    watched, unwatched = (
        read_losses(train_here(make_recipe(training={"steps": 6}, every={"validation": each}), f"every-{each}"))
        for each in (1, 1000)
    )
    assert watched == unwatched


@pytest.mark.parametrize(("cosine", "is_warned_of"), [(0.94, False), (0.96, True), (None, False)])
def test_latents_that_do_not_part_are_warned_of_in_one_line_that_names_the_option(
    cosine: float | None, is_warned_of: bool, tmp_path: Path
) -> None:
    output = io.StringIO()
    console = Console(file=output, width=80)
    of_level_1 = LatentFigures(
        tokens_per_latent=9.6,
        latents_per_token=1.0,
        cosine_after_read=0.9,
        cosine_after_core=None,
        rank_after_read=3.0,
        rank_after_core=None,
    )
    figures = {1: of_level_1, 16: replace(of_level_1, cosine_after_core=cosine)}
    with Reporter(RunDirectory(tmp_path), console, VirtualClock(), batch=8, steps=2, first_step=0) as reporter:
        reporter.validation(2, {1: 0.2, 16: 0.1}, figures)
    _, told, *warning = output.getvalue().splitlines()
    assert told.startswith("latents at level 16: ")
    assert "9.6 tokens read per latent, 1.0 latents per token" in told
    assert len(warning) == is_warned_of
    assert all("nearly alike (cosine 0.960 after the core)" in line for line in warning)
    assert all("backbone.interface.start" in line for line in warning)


def test_of_ruined_weights_the_loss_is_told_and_no_latents_are_looked_at(
    make_recipe: Callable[..., Recipe], photographs: Path, tmp_path: Path
) -> None:
    trainer = trainer_with_signal(make_recipe(), photographs, tmp_path / "run")
    with torch.no_grad():
        next(trainer.learner.ema.model.parameters()).fill_(float("nan"))
    console = Console(file=io.StringIO())
    trainer.run.path.mkdir()
    with Reporter(trainer.run, console, VirtualClock(), batch=8, steps=2, first_step=0) as reporter:
        trainer._report_validation(reporter)
    (line,) = (trainer.run.path / "log.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"step", "validation"}


def test_tensorboard_has_the_same_curves(finished_run: RunDirectory, read_log: Log, read_losses: Losses) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished_run.path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {
        "train/loss",
        "train/grad_norm",
        "train/lr",
        "train/images_per_s",
        *(f"validation/level_{level}" for level in (1, 2, 4)),
        *(f"latents/{name}/level_{level}" for level in (1, 2, 4) for name in ALWAYS_THERE),
        *(f"latents/{name}_after_core/level_{level}" for level in (2, 4) for name in ("cosine", "rank")),
    }
    curve = {event.step: event.value for event in events.Scalars("train/loss")}
    assert curve == pytest.approx(read_losses(finished_run))
    validation = {line["step"]: line["validation"]["2"] for line in read_log(finished_run) if "validation" in line}
    assert {event.step: event.value for event in events.Scalars("validation/level_2")} == pytest.approx(validation)


def test_sample_grids_have_a_row_per_shown_level_and_a_column_per_class(finished_run: RunDirectory) -> None:
    sheets = sorted((finished_run.path / "samples").iterdir())
    assert [sheet.name for sheet in sheets] == ["step-00000050.png", "step-00000060.png"]
    with Image.open(sheets[-1]) as sheet:
        pictures = 3 * 130 - 2
        left, top = sheet.width - pictures, sheet.height - pictures
        assert left > 60
        assert top > 13
        for number in range(3):  # there is text beside each row and above each column
            begin, end = 130 * number, 130 * number + 128
            for margin in ((0, top + begin, left, top + end), (left + begin, 0, left + end, top)):
                darkest, brightest = sheet.convert("L").crop(margin).getextrema()
                assert (darkest, brightest) == (0, 255)


def test_a_grid_under_autoguidance_leaves_out_the_levels_that_cannot_be_guided(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    recipe = make_recipe(
        training={"steps": 1}, sampling={"steps": 2, "guidance": {"method": "ag", "scale": 2.0, "weak_level": 1}}
    )
    with Image.open(train_here(recipe).path / "samples" / "step-00000001.png") as sheet:
        assert 2 * 130 < sheet.height < 3 * 130


def test_the_output_has_loss_speed_and_time_left(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    output = io.StringIO()
    train_here(make_recipe(training={"steps": 2}), output=output)
    *_, first, second, validation, latents = output.getvalue().splitlines()
    assert first.startswith("step 1/2  loss ")
    assert " images/s  " in first
    assert second.endswith(" s left")
    assert validation.startswith("step 2  validation loss by level  1: ")
    assert re.fullmatch(
        r"latents at level 4: cosine -?0\.\d\d after Read, -?0\.\d\d after the core; "
        r"\d\.\d tokens read per latent, \d\.\d latents per token; "
        r"differences of rank \d\.\d after Read, \d\.\d after the core",
        latents,
    )
