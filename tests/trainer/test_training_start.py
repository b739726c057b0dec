"""Before its first step a run says what it reads and how it runs, and it runs where nothing can be compiled."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory


def test_a_run_says_what_it_reads_and_how_it_runs_before_its_first_step(
    make_photographs: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    folder = make_photographs(tmp_path / "photographs")
    (folder / "rose" / "notes.txt").write_text("no picture")
    output = io.StringIO()
    train_here(make_recipe(training={"steps": 2}), data=folder, output=output)
    before, _, _ = output.getvalue().partition("step 1/2")
    assert before.splitlines() == [
        f"{folder}: left out files of other kinds (.txt 1): 1",
        "18 photographs of 3 classes to train on, read into memory now; 6 to validate with",
        "training on cpu (threads: 1) in float32, not compiled: steps 1 to 2 of 8 pictures",
    ]


def test_a_recipe_that_does_not_say_is_not_compiled_on_a_cpu(
    make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    content = make_recipe(training={"steps": 1}).model_dump()
    del content["training"]["compile"]
    output = io.StringIO()
    train_here(Recipe.model_validate(content), output=output)
    assert "float32, not compiled: steps 1 to 1" in output.getvalue()


def test_where_there_is_no_compiler_a_run_says_so_in_one_line_and_goes_on(
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., Popen[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No programs at all, in fact: a slim image has no git either."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    process = start_training(make_recipe(training={"steps": 2, "compile": True}), tmp_path / "run")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    (said,) = (line for line in output.splitlines() if "compiler" in line)
    assert said.startswith("nothing can be compiled here, so the run goes on uncompiled: ")
    assert "step 2/2  loss " in output
    assert sys.executable.startswith("/")  # so it was found without PATH
