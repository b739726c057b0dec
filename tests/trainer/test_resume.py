"""A run that was killed, asked to end or stopped by a full disk goes on to the very losses of one never stopped."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elit_serve.errors import RunError
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

Losses = Callable[[RunDirectory], dict[int, float]]
Log = Callable[[RunDirectory], list[dict[str, Any]]]


def wait_for_step(process: subprocess.Popen[str], step: int) -> None:
    """Reads the command's output until it says that a step is done."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(f"the run ended before step {step}")


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, standard error)."""
    _, errors = process.communicate(timeout=120)
    return process.returncode, errors


def assert_same_run(run: RunDirectory, other: RunDirectory, losses: Losses) -> None:
    """Losses and all final tensors, bit for bit."""
    assert losses(run) == losses(other)
    ours, theirs = run.load(), other.load()
    assert ours.state == theirs.state
    for name in ("model", "ema", "optimizer"):
        mine, expected = getattr(ours, name), getattr(theirs, name)
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[key], expected[key]) for key in expected), name


def test_a_run_killed_and_then_stopped_by_a_full_disk_ends_as_if_nothing_had_happened(
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., subprocess.Popen[str]],
    finished_run: RunDirectory,
    read_losses: Losses,
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "run")

    process = start_training(make_recipe(), run.path)
    wait_for_step(process, 13)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    killed_at = max(read_losses(run))
    assert 13 <= killed_at < 60
    before = run.steps()
    assert before

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    code, errors = finish(start_training(make_recipe(), run.path, "--resume", preexec_fn=small_disk))
    assert code == 2
    assert errors.count("\n") == 1
    assert errors.startswith(f"error: the checkpoint of step {before[-1] + 10} cannot be written to {run.path}: ")
    assert errors.endswith(f"; the last good checkpoint is at step {before[-1]}\n")
    assert run.steps() == before
    assert run.load().state.step == before[-1]

    code, errors = finish(start_training(make_recipe(), run.path, "--resume"))
    assert code == 0, errors
    assert_same_run(run, finished_run, read_losses)


def test_a_streamed_run_asked_to_end_saves_and_goes_on_with_the_losses_of_one_in_memory(
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., subprocess.Popen[str]],
    finished_run: RunDirectory,
    read_losses: Losses,
    tmp_path: Path,
) -> None:
    recipe = make_recipe(data={"memory_gb": 0, "workers": 2}, every={"checkpoint": 1000})
    run = RunDirectory(tmp_path / "run")

    process = start_training(recipe, run.path)
    wait_for_step(process, 7)
    process.terminate()
    code, errors = finish(process)
    ended_at = run.steps()[-1]
    assert code == 2
    assert 7 <= ended_at < 60
    assert errors == f"error: asked to end; saved at step {ended_at}, continue with --resume\n"
    assert max(read_losses(run)) == ended_at

    code, errors = finish(start_training(recipe, run.path, "--resume"))
    assert code == 0, errors
    assert_same_run(run, finished_run, read_losses)


def test_the_mean_loss_of_an_interval_survives_a_stop_within_it(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses, tmp_path: Path
) -> None:
    recipe = make_recipe(training={"steps": 12}, every={"log": 4, "checkpoint": 6, "validation": 100, "samples": 100})
    whole = train_here(recipe, "whole")
    stopped = RunDirectory(shutil.copytree(whole.path, tmp_path / "stopped"))
    shutil.rmtree(stopped.path / "checkpoints" / "step-00000012")
    with (stopped.path / "log.jsonl").open("a") as log:
        log.write('{"step": 16, "lo')  # cut off in the middle of a line

    train_here(recipe, "stopped", resume=True)

    assert sorted(read_losses(stopped)) == [4, 8, 12]
    assert_same_run(stopped, whole, read_losses)


def test_a_finished_run_that_is_resumed_stays_as_it_is(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_log: Log
) -> None:
    recipe = make_recipe(training={"steps": 3})
    run = train_here(recipe)
    before = read_log(run)
    train_here(recipe, resume=True)
    assert run.steps() == [3]
    assert read_log(run) == before


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses
) -> None:
    recipe = make_recipe(training={"steps": 3})
    run = train_here(recipe)
    before = read_losses(run)
    shutil.rmtree(run.path / "checkpoints")
    train_here(recipe, resume=True)
    assert read_losses(run) == before


@pytest.mark.parametrize(
    ("section", "changed"),
    [
        ("recipe", {"training": {"steps": 3, "seed": 6}}),
        ("data", {"training": {"steps": 3}}),
    ],
)
def test_another_recipe_or_other_data_is_refused(
    section: str,
    changed: dict[str, Any],
    make_recipe: Callable[..., Recipe],
    make_photographs: Callable[..., Path],
    train_here: Callable[..., RunDirectory],
    photographs: Path,
    tmp_path: Path,
) -> None:
    train_here(make_recipe(training={"steps": 3}))
    data = make_photographs(tmp_path / "photographs", per_class=5) if section == "data" else photographs
    with pytest.raises(RunError, match=f"was started with another {section}; --resume continues the same run only"):
        train_here(make_recipe(**changed), data=data, resume=True)


def test_a_date_in_the_provenance_does_not_make_it_another_recipe(
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
) -> None:
    import datetime

    recipe = make_recipe(training={"steps": 1}, provenance={"collected": datetime.date(2025, 1, 31)})
    train_here(recipe)
    assert train_here(recipe, resume=True).steps() == [1]


def test_resuming_where_there_is_no_run_says_so(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    with pytest.raises(RunError, match=r"nothing-here holds no run: run\.json"):
        train_here(make_recipe(), "nothing-here", resume=True)


def test_starting_anew_in_a_used_folder_is_refused(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    recipe = make_recipe(training={"steps": 1})
    run = train_here(recipe)
    with pytest.raises(RunError, match="already holds a run; continue it with --resume"):
        train_here(recipe)
    (run.path / "run.json").unlink()
    with pytest.raises(RunError, match="already holds a run"):
        train_here(recipe)


def test_weights_that_a_gradient_may_have_ruined_are_not_saved(
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(torch.inf))
    with pytest.raises(RunError, match="the gradient's norm is inf at step 2; lower the learning rate"):
        train_here(make_recipe(training={"steps": 2}, every={"log": 1000}))
    assert RunDirectory(tmp_path / "run").steps() == []
