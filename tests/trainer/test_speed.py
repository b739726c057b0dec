"""How fast a recipe trains: figures that agree with each other, from random samples alone, and nothing written."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from elit_serve.cli import main
from elit_serve.errors import InvalidInput, RunError
from elit_serve.nn.flops import flops_iteration
from elit_serve.trainer.draws import draw_levels, drawable_levels
from elit_serve.trainer.recipe import Budget, Recipe, Training
from elit_serve.trainer.speed import TrainingSpeed, _batch_named, speed_table, speed_to_file, step_flops

CPU = torch.device("cpu")
LEVELS = (1, 2, 3, 4)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the process works, to see what is written."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def speed_of(recipe: Recipe, out: Path | None = None, *, steps: int = 5, **options: Any) -> TrainingSpeed:
    console = Console(file=io.StringIO())
    return speed_to_file(
        recipe, out, steps=steps, warm_up=1, device=CPU, command="elit-serve", console=console, **options
    )


def test_the_figures_agree_with_each_other_and_nothing_is_written(
    make_recipe: Callable[..., Recipe], empty_folder: Path
) -> None:
    speed = speed_of(make_recipe())
    assert speed.samples == "pictures"
    assert speed.images_per_second == pytest.approx(8 / speed.step_s_mean)
    assert speed.tflops == pytest.approx(speed.tflop_per_step / speed.step_s_mean)
    assert speed.share_of_ceiling == pytest.approx(speed.tflops / speed.ceiling_tflops)
    assert 0 < speed.share_of_ceiling < 1
    assert min(speed.parts_s.model_dump().values()) > 0
    assert (speed.peak_memory_gb, speed.graphs, speed.is_compiled) == (None, False, False)
    assert list(empty_folder.iterdir()) == []


def test_the_flops_are_those_of_the_levels_that_training_draws(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe()
    spec = recipe.backbone.sketch
    drawn = [draw_levels(step, recipe.budget, recipe.levels, recipe.training) for step in range(1, 6)]  # 0 warms up
    assert len(set(drawn)) > 1
    expected = sum(flops_iteration(spec.flops(level), 8).executed for (level,) in drawn) / 5e12
    assert speed_of(recipe).tflop_per_step == pytest.approx(expected)


def test_a_batch_of_two_levels_costs_the_mean_of_both(make_recipe: Callable[..., Recipe]) -> None:
    spec = make_recipe().backbone.sketch
    assert step_flops(spec, (4, 1), 8) == pytest.approx((step_flops(spec, (4,), 8) + step_flops(spec, (1,), 8)) / 2)


@pytest.mark.parametrize("kind", ["diffusers", "none"])
def test_a_model_of_latents_needs_no_autoencoder(kind: str, make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(
        backbone={"channels": 4, "height": 8, "width": 8, "patch": 2}, autoencoder={"kind": kind}, data={"shift": 30}
    )
    speed = speed_of(recipe, steps=2)
    assert speed.samples == "latents"
    output = io.StringIO()
    Console(file=output).print(speed_table(speed))
    shown = " ".join(output.getvalue().split())
    assert "2 steps of 8 random latents" in shown
    assert "Reading and encoding photographs is not in these figures." in shown


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("training", {"accumulation": 2}),
        ("training", {"steps": 1, "precision": "bfloat16"}),
        ("budget", {"drawing": "random-drop"}),
        ("budget", {"full_share": 0.5, "distilled": True, "elastic_from": 0.9}),
        ("optimizer", {"decay_steps": 1}),  # the learning rate would be below zero after the recipe's last step
        ("backbone", {"interface": None}),
    ],
)
def test_whatever_a_recipe_may_train_can_be_measured(
    section: str, changes: dict[str, Any], make_recipe: Callable[..., Recipe]
) -> None:
    assert speed_of(make_recipe(**{section: changes}), steps=3).loss < 3


@pytest.mark.parametrize("drawing", ["uniform", "fixed", "random-drop"])
@pytest.mark.parametrize("full_share", [0.0, 0.3, 0.5, 0.8])
def test_every_choice_of_levels_that_is_drawn_was_made_ready(drawing: str, full_share: float) -> None:
    budget = Budget.model_validate({"drawing": drawing, "full_share": full_share})
    training = Training(steps=1000, batch=8)
    drawn = {draw_levels(step, budget, LEVELS, training) for step in range(1000)}
    ready = drawable_levels(budget, LEVELS)
    assert len(ready) == len(set(ready))
    assert set(ready) == drawn


def test_the_file_says_all_that_was_measured_and_with_what(make_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    file = tmp_path / "new" / "speed.json"
    speed = speed_of(make_recipe(), file, steps=2, changes=["training.batch=8"])
    written = json.loads(file.read_text())
    assert written == speed.model_dump(mode="json")
    assert written["changes"] == ["training.batch=8"]
    assert written["recipe"]["training"]["batch"] == 8
    assert (written["torch_version"], written["command"], written["threads"]) == (torch.__version__, "elit-serve", 1)


def test_a_loss_that_is_not_finite_is_an_error_as_in_training(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(optimizer={"warmup_steps": 0})
    far_too_fast = recipe.optimizer.model_copy(update={"learning_rate": 1e30})  # no file may say so
    with pytest.raises(RunError, match=r"the loss is (nan|inf) at step 11; lower the learning rate"):
        speed_of(recipe.model_copy(update={"optimizer": far_too_fast}), steps=10)


def test_what_cannot_be_measured_is_refused_before_anything_runs(
    make_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for out, said in ((tmp_path, "a file; this is a folder"), (tmp_path / "file" / "a.json", "can be written")):
        with pytest.raises(InvalidInput, match=said):
            speed_of(make_recipe(), out)
    with pytest.raises(InvalidInput, match=r"data\.shift: 16 is not allowed; less than the picture, 16 x 16"):
        speed_of(make_recipe(data={"shift": 16}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInput, match="--nproc-per-node: 2 is not allowed; 1: one device is measured"):
        speed_of(make_recipe())


def test_a_batch_that_does_not_fit_into_memory_is_named(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(training={"accumulation": 2})
    said = r"training\.batch: 8 is not allowed; micro-batches of 4 do not fit into the memory of .*accumulation"
    with pytest.raises(InvalidInput, match=said), _batch_named(recipe, CPU):
        raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def recipe_file(
    make_recipe: Callable[..., Recipe], write_recipe: Callable[[Recipe, Path], Path], tmp_path: Path
) -> Path:
    return write_recipe(make_recipe(), tmp_path / "recipe.toml")


def test_the_command_prints_a_table_and_writes_the_file(
    recipe_file: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "training.batch=4", "--steps", "3", "--warm-up", "1", "--device", "cpu", "--out", "speed.json"]
    monkeypatch.setattr(sys, "argv", ["elit-serve", "profile-training", str(recipe_file), *options])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    printed = capsys.readouterr()
    shown = " ".join(printed.out.split())
    for figure in ("images per second", "share of that", "gradient, share of a step", "3 steps of 4 random pictures"):
        assert figure in shown
    assert printed.err == "running each choice of levels once (4)\n"
    written = json.loads((empty_folder / "speed.json").read_text())
    assert (written["changes"], written["steps"], written["warm_up"]) == (["training.batch=4"], 3, 1)
    assert written["command"].startswith("elit-serve profile-training ")


def test_ctrl_c_ends_it_without_a_trace(recipe_file: Path, empty_folder: Path) -> None:
    command = [sys.executable, "-m", "elit_serve.cli", "profile-training", str(recipe_file), "--steps", "1000000"]
    with subprocess.Popen(
        [*command, "--device", "cpu", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    ) as process:
        try:
            assert process.stderr is not None
            assert process.stderr.readline() == "running each choice of levels once (4)\n"
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert "Traceback" not in errors, errors
    assert (printed, process.returncode) == ("", 130), errors
    assert list(empty_folder.iterdir()) == []
