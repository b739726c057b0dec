"""`elit-serve train` and `elit-serve export`: what they print, and one line with exit code 2 for what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from elit_serve.catalogue import read_config
from elit_serve.cli import main
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

Command = Callable[..., None]
Refusal = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Runs the command line in this process."""

    def run(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["elit-serve", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        if caught.value.code:
            raise caught.value

    return run


@pytest.fixture
def refusal(command: Command, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """The one line that a command ends with, at exit code 2."""

    def run(*arguments: object) -> str:
        with pytest.raises(SystemExit) as caught:
            command(*arguments)
        errors = capsys.readouterr().err
        assert caught.value.code == 2
        assert errors.startswith("error: ")
        assert errors.count("\n") == 1
        return errors.removeprefix("error: ").rstrip("\n")

    return run


@pytest.fixture
def recipe_file(
    make_recipe: Callable[..., Recipe], write_recipe: Callable[[Recipe, Path], Path], tmp_path: Path
) -> Path:
    return write_recipe(make_recipe(training={"steps": 2}), tmp_path / "recipe.toml")


def test_a_recipe_is_trained_and_exported(
    command: Command,
    recipe_file: Path,
    photographs: Path,
    make_photographs: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, model = tmp_path / "run", tmp_path / "models" / "flowers"
    held_out = make_photographs(tmp_path / "held-out", per_class=2)
    command("train", recipe_file, "--data", photographs, "--val", held_out, "--out", run, "--device", "cpu")
    assert "step 2/2  loss " in capsys.readouterr().out
    assert RunDirectory(run).facts().data.training_pictures == 24

    command("export", run, model, "--dtype", "float16", "--step", 2)
    assert capsys.readouterr().out == f"{model}: model.safetensors\n"
    assert read_config(model).weights.dtype == "float16"
    command("export", run, model, "--replace")
    assert read_config(model).weights.dtype == "bfloat16"


def test_a_bad_recipe_lists_all_its_problems(refusal: Refusal, photographs: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "bad.toml"
    recipe.write_text("name = 'bad name'\nstep = 3\n[training]\nsteps = 0\nbatch = 8\n")
    line = refusal("train", recipe, "--data", photographs, "--out", tmp_path / "run")
    assert line.startswith(
        f"{recipe} is not a valid recipe: name: 'bad name' is not allowed; string should match pattern"
    )
    for problem in (
        "; backbone: Field required",
        "; training.steps: 0 is not allowed; input should be",
        "; step: Extra inputs are not",
    ):
        assert problem in line


def test_what_is_missing_is_named(refusal: Refusal, recipe_file: Path, photographs: Path, tmp_path: Path) -> None:
    run, missing = tmp_path / "run", tmp_path / "missing"
    assert "missing.toml is not a valid recipe: it cannot be read" in refusal(
        "train", tmp_path / "missing.toml", "--data", photographs, "--out", run
    )
    assert refusal("train", recipe_file, "--data", missing, "--out", run) == (
        f"{missing} does not exist; a data set is a folder or a tar of class/name.jpg"
    )
    assert "holds no run: run.json: No such file" in refusal(
        "train", recipe_file, "--data", photographs, "--out", run, "--resume"
    )
    assert "holds no run: run.json: No such file" in refusal("export", run, tmp_path / "model")
    assert not run.exists()


def test_a_used_folder_is_refused(
    refusal: Refusal, recipe_file: Path, photographs: Path, finished_run: RunDirectory
) -> None:
    line = refusal("train", recipe_file, "--data", photographs, "--out", finished_run.path)
    assert line.endswith("already holds a run; continue it with --resume, or choose another folder")


def test_an_unwritable_folder_is_one_line(
    refusal: Refusal, recipe_file: Path, photographs: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    line = refusal("train", recipe_file, "--data", photographs, "--out", tmp_path / "file" / "run")
    assert line.endswith("cannot be written: Not a directory")


def test_export_passes_over_a_damaged_checkpoint_and_says_so(
    refusal: Refusal, finished_run: RunDirectory, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(finished_run.path, tmp_path / "run"))
    file = run / "checkpoints" / "step-00000060" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    command = [sys.executable, "-m", "elit_serve.cli", "export", run, tmp_path / "model"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("skipped the checkpoint of step 60: ")
    assert line.endswith("step-00000060 is damaged: ema.safetensors is cut off or altered")
    assert read_config(tmp_path / "model").provenance["steps"] == 50
    assert "step-00000060 is damaged: " in refusal("export", run, tmp_path / "other", "--step", 60)


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("--dtype", "int4", "dtype: 'int4' is not allowed; one of float32, bfloat16, float16"),
        ("--step", 7, "has no checkpoint of step 7; there are 50, 60"),
        ("--autoencoder", "vae", "this recipe's autoencoder is pixels"),
    ],
)
def test_a_bad_option_of_export_is_one_line(
    option: str, value: object, problem: str, refusal: Refusal, finished_run: RunDirectory, tmp_path: Path
) -> None:
    assert problem in refusal("export", finished_run.path, tmp_path / "model", option, value)
    assert not (tmp_path / "model").exists()


def test_an_unknown_device_is_one_line(refusal: Refusal, recipe_file: Path, photographs: Path, tmp_path: Path) -> None:
    line = refusal("train", recipe_file, "--data", photographs, "--out", tmp_path / "run", "--device", "abacus")
    assert line == "device: 'abacus' is not allowed; cpu, cuda or cuda:N"
