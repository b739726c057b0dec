"""Checkpoints of a run: whole or not there, few, and never pickled."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console

from elit_serve.clock import VirtualClock
from elit_serve.errors import RunError
from elit_serve.trainer.progress import Reporter
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory, Snapshot, TrainState

SmallDisk = Callable[[int], AbstractContextManager[None]]


def snapshot(step: int, size: int = 8) -> Snapshot:
    tensors = {"weight": torch.full((size,), float(step))}
    state = TrainState(step=step, window_loss=0.5, window_steps=1)
    return Snapshot(model=tensors, ema=tensors, optimizer=tensors, state=state)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with checkpoints at steps 1 and 2."""
    run = RunDirectory(tmp_path / "run")
    for step in (1, 2):
        run.save(snapshot(step), keep=5)
    return run


def test_what_is_saved_is_what_is_loaded(run: RunDirectory) -> None:
    assert run.steps() == [1, 2]
    assert run.load().state == TrainState(step=2, window_loss=0.5, window_steps=1)
    assert run.load(1).ema["weight"].tolist() == [1.0] * 8


def test_a_full_disk_while_saving_leaves_the_last_checkpoint_whole(run: RunDirectory, largest_file: SmallDisk) -> None:
    with (
        largest_file(2_000),
        pytest.raises(RunError, match=r"the checkpoint of step 3 cannot be written .*; the last good .* at step 2$"),
    ):
        run.save(snapshot(3, size=5_000), keep=1)
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-00000001", "step-00000002"]
    assert run.load().ema["weight"].tolist() == [2.0] * 8
    run.save(snapshot(3, size=5_000), keep=1)
    assert run.steps() == [3]


def test_the_very_first_checkpoint_failing_says_that_there_is_none(tmp_path: Path, largest_file: SmallDisk) -> None:
    with largest_file(10), pytest.raises(RunError, match=r"; there is none yet$"):
        RunDirectory(tmp_path / "run").save(snapshot(1), keep=1)


def test_a_folder_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="the checkpoint of step 1 cannot be written"):
        RunDirectory(tmp_path / "file" / "run").save(snapshot(1), keep=1)


def test_only_the_newest_checkpoints_remain(run: RunDirectory) -> None:
    for step in (3, 4, 5):
        run.save(snapshot(step), keep=2)
    assert run.steps() == [4, 5]
    assert sorted(path.name for path in (run.path / "checkpoints").iterdir()) == ["step-00000004", "step-00000005"]


def test_leftovers_of_a_killed_save_are_ignored_and_go_with_the_next_one(run: RunDirectory) -> None:
    checkpoints = run.path / "checkpoints"
    shutil.copytree(checkpoints / "step-00000001", checkpoints / ".step-00000007")
    (checkpoints / ".step-00000007" / "state.json").unlink()
    (checkpoints / "step-by-step").mkdir()
    assert run.steps() == [1, 2]
    assert run.load().state.step == 2
    run.save(snapshot(3), keep=5)
    names = sorted(path.name for path in checkpoints.iterdir())
    assert names == ["step-00000001", "step-00000002", "step-00000003", "step-by-step"]


def test_saving_a_step_again_leaves_it_alone(run: RunDirectory) -> None:
    file = run.path / "checkpoints" / "step-00000002" / "ema.safetensors"
    before = file.stat()
    run.save(snapshot(2), keep=5)
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    assert file.stat().st_ino == before.st_ino


def cut_off(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-5])


def altered(file: Path) -> None:
    """One bit of the last byte: of a tensor, or a line break in JSON."""
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def missing(file: Path) -> None:
    file.unlink()


def a_fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("damage", [cut_off, altered, missing, a_fifo], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", ["model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json"])
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_one_named(
    name: str, damage: Callable[[Path], None], run: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    damage(run.path / "checkpoints" / "step-00000002" / name)
    assert run.load().state.step == 1
    (warning,) = caplog.messages
    assert warning.startswith("skipped the checkpoint of step 2: ")
    assert "step-00000002 is damaged: " in warning
    assert name in warning
    with pytest.raises(RunError, match="step-00000002 is damaged: "):  # who asks for it gets no other
        run.load(2)


@pytest.mark.parametrize(
    "change",
    [
        {"step": 1},
        {"step": -1},
        {"step": 10**30},
        {"step": "two"},
        {"step": 2.5},
        {"window_loss": math.nan},
        {"window_loss": math.inf},
        {"window_loss": None},
        {"window_steps": -1},
        {"damaged": 7},
        {"files": {}},
        {"files": {"model": "0" * 64, "ema": "0" * 64, "optimizer": "0" * 64}},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_state_that_was_tampered_with_makes_its_checkpoint_a_damaged_one(
    change: dict[str, object], run: RunDirectory
) -> None:
    file = run.path / "checkpoints" / "step-00000002" / "state.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(RunError, match="step-00000002 is damaged: ") as caught:
        run.load(2)
    assert "\n" not in str(caught.value)
    assert run.load().state.step == 1


def test_a_run_with_damaged_checkpoints_only_is_one_clear_error(run: RunDirectory) -> None:
    for step in (1, 2):
        cut_off(run.path / "checkpoints" / f"step-{step:08d}" / "ema.safetensors")
    with pytest.raises(RunError, match=r"run holds no whole checkpoint: those of 1, 2 are damaged"):
        run.load()


@pytest.mark.parametrize(
    "line",
    ["", "[]", "null", "{}", '{"step": "x"}', '{"step": -3}', '{"step": 1e400}', "[" * 50_000, '{"step": 2', "\x00"],
    ids=lambda line: line[:12] or "empty",
)
def test_a_log_that_was_tampered_with_is_one_line_and_stays_as_it_is(line: str, run: RunDirectory) -> None:
    log = run.path / "log.jsonl"
    log.write_text(f'{{"step": 1, "loss": 0.5}}\n{line}\n{{"step": 2, "loss": 0.5}}\n')
    before = log.read_bytes()
    with pytest.raises(RunError, match=r"log\.jsonl is damaged: line 2 is no record of a step") as caught:
        run.forget_after(1)
    assert "\n" not in str(caught.value)
    assert log.read_bytes() == before


def test_a_log_in_another_encoding_or_that_is_no_file_is_one_line(run: RunDirectory) -> None:
    log = run.path / "log.jsonl"
    log.write_bytes(b'{"step": 1, "note": "\xff"}\n')
    with pytest.raises(RunError, match=r"log\.jsonl is damaged: line 1"):
        run.forget_after(1)
    log.unlink()
    os.mkfifo(log)
    with pytest.raises(RunError, match=r"log\.jsonl cannot be read or written: it is no regular file"):
        run.forget_after(1)


def test_a_missing_step_names_those_that_are_there(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="has no checkpoint of step 9; there are 1, 2"):
        run.load(9)
    with pytest.raises(RunError, match="holds no checkpoint"):
        RunDirectory(tmp_path / "other").load()


def test_a_damaged_run_json_is_one_clear_error(run: RunDirectory) -> None:
    (run.path / "run.json").write_text('{"recipe": {}}')
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        run.facts()


def test_a_log_a_curve_or_a_grid_that_cannot_be_written_is_one_clear_error(
    run: RunDirectory, largest_file: SmallDisk
) -> None:
    with largest_file(10), pytest.raises(RunError, match=r"log\.jsonl cannot be written: File too large"):
        run.log({"step": 1, "loss": 0.123456789})
    console = Console(file=io.StringIO())
    (run.path / "samples").write_text("in the way")
    with (
        Reporter(run, console, VirtualClock(), batch=8, steps=2, first_step=0) as reporter,
        pytest.raises(RunError, match="run cannot be written: "),
    ):
        reporter.samples(1, Image.effect_noise((64, 64), 50))
    (run.path / "other").mkdir()
    (run.path / "other" / "tensorboard").write_text("in the way")
    with pytest.raises(RunError, match="other cannot be written: "):
        Reporter(RunDirectory(run.path / "other"), console, VirtualClock(), batch=8, steps=2, first_step=0)


def test_a_checkpoint_of_another_model_cannot_be_resumed(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    recipe = make_recipe(training={"steps": 3}, every={"checkpoint": 2})
    run = train_here(recipe)
    shutil.rmtree(run.path / "checkpoints" / "step-00000003")
    run.save(snapshot(3), keep=1)
    with pytest.raises(RunError, match=r"of step 3: class_embed\.weight, .* in the model or in the checkpoint only"):
        train_here(recipe, resume=True)


def test_nothing_in_a_run_is_pickled_and_few_checkpoints_remain(finished_run: RunDirectory) -> None:
    files = [path for path in finished_run.path.rglob("*") if path.is_file()]
    kinds = {path.suffix or path.name for path in files if not path.name.startswith("events.out.tfevents.")}
    assert kinds == {".json", ".jsonl", ".safetensors", ".png", "lock"}
    starts = {path: path.read_bytes()[:2] for path in files}
    assert not [path for path, start in starts.items() if start in (b"\x80\x02", b"\x80\x04", b"\x80\x05", b"PK")]
    assert finished_run.steps() == [50, 60]
