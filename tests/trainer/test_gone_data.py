"""A data set that goes away in the middle of a run stops it, with what it has learnt saved; it is no damage."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

from elit_serve.errors import DataSetGone
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

STREAMED = {"memory_gb": 0, "workers": 0}


class Watched(io.StringIO):
    """Output that does something, once, when a text is written to it."""

    def __init__(self, text: str, then: Callable[[], object]) -> None:
        super().__init__()
        self._text, self._then = text, then

    def write(self, text: str) -> int:
        written = super().write(text)
        if self._text in self.getvalue():
            self._text = "\0"
            self._then()
        return written


@pytest.fixture
def photographs_tar(photographs: Path, tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "photographs.tar", "w") as tar:
        tar.add(photographs, arcname="photographs")
    return tmp_path / "photographs.tar"


def test_a_tar_that_is_moved_away_stops_the_run_and_a_resumed_one_goes_on_as_if_nothing_had_happened(
    photographs_tar: Path,
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
    read_losses: Callable[[RunDirectory], dict[int, float]],
) -> None:
    recipe = make_recipe(data=STREAMED, training={"steps": 8})
    elsewhere = photographs_tar.with_name("elsewhere.tar")
    output = Watched("step 3/8 ", lambda: photographs_tar.rename(elsewhere))
    with pytest.raises(DataSetGone) as caught:
        train_here(recipe, data=photographs_tar, output=output)
    assert str(caught.value) == (
        f"{photographs_tar} cannot be read: No such file or directory; saved at step 3, continue with --resume"
    )
    assert "damaged" not in output.getvalue()

    elsewhere.rename(photographs_tar)
    broken = train_here(recipe, data=photographs_tar, resume=True)
    unbroken = train_here(recipe, "unbroken", data=photographs_tar)
    assert broken.load().state.damaged == ()
    assert read_losses(broken) == read_losses(unbroken)


def test_a_tar_that_is_written_anew_stops_the_run(
    photographs_tar: Path, make_recipe: Callable[..., Recipe], train_here: Callable[..., RunDirectory]
) -> None:
    """As by a download that begins again: the same file, of which the first half is there."""
    content = photographs_tar.read_bytes()
    output = Watched("step 2/8 ", lambda: photographs_tar.write_bytes(content[: len(content) // 2]))
    with pytest.raises(DataSetGone, match="is not the file any more that it was when the data set was opened"):
        train_here(make_recipe(data=STREAMED, training={"steps": 8}), data=photographs_tar, output=output)
    assert "damaged" not in output.getvalue()


def test_a_folder_that_vanishes_stops_the_run(
    make_photographs: Callable[..., Path],
    make_recipe: Callable[..., Recipe],
    train_here: Callable[..., RunDirectory],
    tmp_path: Path,
) -> None:
    folder = make_photographs(tmp_path / "photographs")
    output = Watched("step 2/8 ", lambda: folder.rename(tmp_path / "elsewhere"))
    with pytest.raises(DataSetGone, match=r"/photographs/.*\.png cannot be read: No such file"):
        train_here(make_recipe(data=STREAMED, training={"steps": 8}), data=folder, output=output)


def test_the_command_says_so_in_one_line_also_when_another_process_reads(
    photographs_tar: Path,
    make_recipe: Callable[..., Recipe],
    start_training: Callable[..., Popen[str]],
    tmp_path: Path,
) -> None:
    recipe = make_recipe(data={"memory_gb": 0, "workers": 1}, training={"steps": 100_000}, every={"log": 1})
    process = start_training(recipe, tmp_path / "run", "--data", str(photographs_tar))
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("step 2/"):
                photographs_tar.unlink()
                break
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 2, errors
    assert errors.count("\n") == 1
    assert errors.startswith(f"error: {photographs_tar} cannot be read: No such file or directory; saved at")
    assert "damaged" not in output
