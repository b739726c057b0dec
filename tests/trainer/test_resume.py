"""A run that was killed, asked to end or stopped by a full disk goes on to the very losses of one never stopped."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elit_serve.errors import RunError
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory
from elit_serve.trainer.run_lock import locked

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
    assert ours.state.model_copy(update={"in_memory": theirs.state.in_memory}) == theirs.state
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


def test_ranks_end_together_whichever_is_asked(
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
) -> None:
    recipe = make_recipe(training={"steps": 10_000}, every={"log": 1, "checkpoint": 10_000, "validation": 10_000})
    run = RunDirectory(tmp_path / "run")

    process = start_training(recipe, run.path, ranks=2)
    wait_for_step(process, 7)
    os.kill(rank_of(process, 1), signal.SIGTERM)
    _, errors = finish(process)
    (ended_at,) = run.steps()
    assert ended_at >= 7
    assert errors.count(f"error: asked to end; saved at step {ended_at}, continue with --resume\n") == 2

    process = start_training(recipe, run.path, "--resume", ranks=2)
    wait_for_step(process, ended_at + 3)
    process.terminate()  # torchrun, which tells all ranks
    finish(process)
    assert run.load().state.step == run.steps()[-1] >= ended_at + 3


def rank_of(torchrun: subprocess.Popen[str], rank: int) -> int:
    """The process of a rank."""
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text(encoding="utf-8").split()
    variables = {child: Path(f"/proc/{child}/environ").read_bytes().split(b"\0") for child in children}
    return next(int(child) for child in children if b"RANK=%d" % rank in variables[child])


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


def test_a_damaged_newest_checkpoint_costs_its_steps_and_nothing_else(
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
    read_losses: Losses,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    recipe = make_recipe(training={"steps": 6}, every={"checkpoint": 2, "keep": 3})
    whole = train_here(recipe, "whole")
    damaged = RunDirectory(shutil.copytree(whole.path, tmp_path / "damaged"))
    file = damaged.path / "checkpoints" / "step-00000006" / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    train_here(recipe, "damaged", resume=True)

    assert [message.split(": ")[0] for message in caplog.messages] == ["skipped the checkpoint of step 6"]
    assert damaged.steps() == [2, 4, 6]
    assert damaged.load(6).state.step == 6
    assert_same_run(damaged, whole, read_losses)
    assert not list((damaged.path / "checkpoints").glob(".*"))


def test_a_run_under_way_is_not_resumed_a_second_time_and_is_free_when_its_process_dies(
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., subprocess.Popen[str]],
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    """With workers that load pictures, which outlive a killed trainer by some seconds."""
    recipe = make_recipe(training={"steps": 100_000}, data={"memory_gb": 0, "workers": 1})
    under_way = start_training(recipe, tmp_path / "run")
    wait_for_step(under_way, 3)
    for resume in (True, False):
        with pytest.raises(RunError, match=rf"run is under way: process {under_way.pid} on .+ is training it"):
            train_here(recipe, resume=resume)
    under_way.kill()
    under_way.wait()
    with locked(tmp_path / "run"):
        assert str(os.getpid()) in (tmp_path / "run" / "lock").read_text()
    finish(under_way)


def test_what_no_weight_depends_on_may_be_changed(
    make_recipe: Callable[..., Recipe],
    make_photographs: Callable[..., Path],
    train_here: Callable[..., RunDirectory],
    read_losses: Losses,
    tmp_path: Path,
) -> None:
    """The photographs as a tar elsewhere, more steps, and everything about speed, logs and samples."""
    decay = {"optimizer": {"decay_steps": 2, "warmup_steps": 10, "learning_rate": 2e-3}}
    short = make_recipe(training={"steps": 6}, every={"checkpoint": 4}, **decay)
    long = make_recipe(training={"steps": 12}, **decay)
    whole = train_here(long, "whole")
    folder = make_photographs(tmp_path / "moved")
    with tarfile.open(tmp_path / "moved.tar", "w") as tar:
        tar.add(folder, "moved")
    stopped = train_here(short, "stopped")
    shutil.rmtree(stopped.path / "checkpoints" / "step-00000006")  # the learning rate fell before it
    assert stopped.steps() == [4]

    changed = make_recipe(
        training={"steps": 12, "compile": False, "graphs": False},
        data={"memory_gb": 0, "workers": 0, "max_corrupt": 0.5},
        every={"log": 1, "validation": 6, "samples": 7, "checkpoint": 4, "keep": 9},
        sampling={"steps": 3},
        provenance={"note": "on another machine"},
        **decay,
    ).model_copy(update={"name": "other"})
    train_here(changed, "stopped", data=tmp_path / "moved.tar", resume=True)

    assert read_losses(stopped) == read_losses(whole)
    facts = stopped.facts()
    assert (facts.recipe, facts.data.source) == (changed, "moved.tar")
    assert stopped.steps() == [4, 8, 12]


def test_a_run_that_reached_its_end_goes_on_when_its_steps_are_made_more(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory], read_losses: Losses
) -> None:
    whole = train_here(make_recipe(training={"steps": 12}), "whole")
    run = train_here(make_recipe(training={"steps": 5}))
    train_here(make_recipe(training={"steps": 12, "accumulation": 2}), resume=True)
    assert read_losses(run) == pytest.approx(read_losses(whole), rel=1e-4)  # sums in another order
    assert run.load().state.step == 12


@pytest.mark.parametrize(
    ("changed", "problems"),
    [
        ({"training": {"seed": 6}}, ["training.seed is 6 here and 5 in the run"]),
        (
            {"training": {"batch": 4, "precision": "bfloat16"}, "data": {"flip": False}},
            [
                "data.flip is false here and true in the run",
                "training.batch is 4 here and 8 in the run",
                "training.precision is bfloat16 here and float32 in the run",
            ],
        ),
        ({"backbone": {"interface": None}}, ["backbone.interface.core is not set here and 1 in the run"]),
        ({"optimizer": {"betas": [0.9, 0.99]}}, ["optimizer.betas is [0.9, 0.99] here and [0.9, 0.999] in the run"]),
        ({"optimizer": {"learning_rate": 1e-3}}, ["optimizer.learning_rate is 0.001 here and 0.002 in the run"]),
        ({"optimizer": {"decay_steps": 20}}, ["optimizer.decay_steps is 20 here and 0 in the run"]),
        ({"training": {"steps": 2}}, ["training.steps is 2 here, and 3 steps are done"]),
    ],
    ids=lambda value: "" if isinstance(value, list) else str(value),
)
def test_what_weights_depend_on_is_refused_by_key_with_both_values(
    changed: dict[str, Any],
    problems: list[str],
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
) -> None:
    every = {"log": 1, "validation": 100, "samples": 100, "checkpoint": 10}
    run = train_here(make_recipe(training={"steps": 3}, every=every, budget={"max_level": 1}))
    before = (run.path / "run.json").read_bytes()
    sections = {name: {**values} for name, values in changed.items()}
    sections["training"] = {"steps": 3, **sections.get("training", {})}
    with pytest.raises(RunError, match="holds another run, and --resume goes on with the same one: ") as caught:
        train_here(make_recipe(every=every, budget={"max_level": 1}, **sections), resume=True)
    assert all(problem in str(caught.value) for problem in problems)
    assert "\n" not in str(caught.value)
    assert (run.path / "run.json").read_bytes() == before


def test_exchanged_photographs_of_the_same_names_are_refused(
    make_recipe: Callable[..., Recipe], photographs: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    recipe = make_recipe(training={"steps": 3})
    train_here(recipe)
    exchanged = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    one, other = exchanged / "rose" / "000.png", exchanged / "rose" / "001.png"
    one.rename(tmp_path / "kept")
    other.rename(one)
    (tmp_path / "kept").rename(other)
    with pytest.raises(RunError, match=r"the photographs are others: 18 \(\w{12}\) here and 18 \(\w{12}\) in the run"):
        train_here(recipe, data=exchanged, resume=True)


def test_exchanged_held_out_photographs_are_refused(
    make_recipe: Callable[..., Recipe], photographs: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    recipe = make_recipe(training={"steps": 3})
    run = train_here(recipe)
    exchanged = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    refusals = []
    for file in sorted(exchanged.glob("rose/*.png")):
        whole = file.read_bytes()
        file.write_bytes(whole + b"longer")
        with pytest.raises(RunError, match="photographs are others") as refusal:
            train_here(recipe, data=exchanged, resume=True)
        refusals.append(str(refusal.value))
        file.write_bytes(whole)
    assert run.steps()
    assert any("the held-out photographs are others" in refusal for refusal in refusals)
    train_here(recipe, data=exchanged, resume=True)


def test_other_classes_are_named(
    make_recipe: Callable[..., Recipe],
    make_photographs: Callable[..., Path],
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    recipe = make_recipe(training={"steps": 1})
    train_here(recipe)
    other = make_photographs(tmp_path / "other", classes=("daisy", "rose", "thistle"))
    with pytest.raises(RunError, match=r"the classes are 3 here \(without tulip; with thistle\) and 3 in the run"):
        train_here(recipe, data=other, resume=True)


def test_with_damaged_pictures_a_run_in_memory_is_not_streamed(
    make_recipe: Callable[..., Recipe], photographs: Path, train_here: Callable[..., RunDirectory], tmp_path: Path
) -> None:
    """The damaged ones are left out there and replaced here, so that the others come in another order."""
    damaged = Path(shutil.copytree(photographs, tmp_path / "photographs"))
    (damaged / "rose" / "000.png").write_text("no picture")
    kept = {"max_corrupt": 0.5}
    train_here(make_recipe(training={"steps": 3}, data=kept), data=damaged)
    streamed = make_recipe(training={"steps": 6}, data={**kept, "memory_gb": 0, "workers": 0})
    with pytest.raises(RunError, match=r"data\.memory_gb: with damaged pictures"):
        train_here(streamed, data=damaged, resume=True)


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
