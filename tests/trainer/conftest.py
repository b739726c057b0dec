"""A tiny model, made photographs, and training in this process or as the command in one of its own."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from elit_serve.trainer.loop import train
from elit_serve.trainer.recipe import Recipe
from elit_serve.trainer.run import RunDirectory

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., RunDirectory]
StartCommand = Callable[..., "subprocess.Popen[str]"]

# 3 x 16 x 16 pixels, 4 groups of 4, and everything that happens every so often happens soon.
TINY: dict[str, dict[str, Any]] = {
    "backbone": {
        "channels": 3,
        "height": 16,
        "width": 16,
        "patch": 4,
        "dim": 32,
        "depth": 3,
        "num_heads": 2,
        "interface": {"window": [2, 2], "head": 1, "core": 1, "tail": 1},
    },
    "data": {"shift": 2, "holdout": 0.25},
    "optimizer": {"learning_rate": 2e-3, "warmup_steps": 10, "ema": 0.95},
    "training": {"steps": 60, "batch": 8, "precision": "float32", "compile": False, "seed": 5},
    "every": {"log": 1, "validation": 25, "samples": 50, "checkpoint": 10, "keep": 2},
    "sampling": {"steps": 2, "guidance": {"method": "ccfg", "scale": 1.5, "weak_level": 1}},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """So small a model is faster on one thread, and sums in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def make_recipe() -> MakeRecipe:
    """The tiny recipe; a keyword per section changes some of its keys."""

    def make(**sections: Mapping[str, Any]) -> Recipe:
        changed = {name: {**TINY.get(name, {}), **values} for name, values in sections.items()}
        return Recipe.model_validate({"name": "tiny", **TINY, **changed})

    return make


def made_photograph(index: int, label: int, size: int = 16) -> Image.Image:
    """A gradient whose direction is the class and whose phase is the picture's number: integers only."""
    y, x = np.mgrid[0:size, 0:size]
    slope = (x, y, x + y)[label % 3]
    channels = [(slope * 9 + index * 23 + channel * 60) % 256 for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.fixture(scope="session")
def make_photographs() -> Callable[..., Path]:
    """Writes `per_class` PNG files for each class into a folder."""

    def make(folder: Path, per_class: int = 8, classes: tuple[str, ...] = ("daisy", "rose", "tulip")) -> Path:
        for label, name in enumerate(classes):
            (folder / name).mkdir(parents=True)
            for index in range(per_class):
                made_photograph(index, label).save(folder / name / f"{index:03d}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def photographs(make_photographs: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes of 8; no test may change them."""
    return make_photographs(tmp_path_factory.mktemp("data") / "photographs")


@pytest.fixture
def train_here(photographs: Path, tmp_path: Path) -> Train:
    """Trains a recipe in this process."""

    def run(recipe: Recipe, out: str = "run", data: Path = photographs, **options: Any) -> RunDirectory:
        console = Console(file=options.pop("output", io.StringIO()))
        train(recipe, data, tmp_path / out, device=torch.device("cpu"), console=console, **options)
        return RunDirectory(tmp_path / out)

    return run


@pytest.fixture(scope="session")
def write_recipe() -> Callable[[Recipe, Path], Path]:
    """A recipe as the TOML file that a user would write."""

    def write(recipe: Recipe, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(as_toml(recipe.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
        return path

    return write


def as_toml(table: Mapping[str, Any], prefix: str = "") -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in table.items() if not isinstance(value, dict)]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += [f"[{prefix}{key}]", as_toml(value, f"{prefix}{key}.")]
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def start_training(photographs: Path, write_recipe: Callable[[Recipe, Path], Path]) -> StartCommand:
    """Starts `elit-serve train` as a process of its own, with its output on a pipe; `ranks` > 1 under torchrun."""

    def start(recipe: Recipe, out: Path, *more: str, ranks: int = 1, **options: Any) -> subprocess.Popen[str]:
        file = write_recipe(recipe, out.parent / f"{out.name}.toml")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
        command = [sys.executable, *launcher, "-m", "elit_serve.cli", "train", str(file), "--data", str(photographs)]
        return subprocess.Popen(
            [*command, "--out", str(out), "--device", "cpu", "--threads", "1", *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            **options,
        )

    return start


@pytest.fixture(scope="session")
def finished_run(
    make_recipe: MakeRecipe, start_training: StartCommand, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """The tiny recipe trained by the command, never interrupted; no test may change it."""
    out = tmp_path_factory.mktemp("finished") / "run"
    process = start_training(make_recipe(), out)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return RunDirectory(out)


@pytest.fixture(scope="session")
def read_log() -> Callable[[RunDirectory], list[dict[str, Any]]]:
    """The lines of log.jsonl."""
    return lambda run: [json.loads(line) for line in (run.path / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def read_losses(read_log: Callable[[RunDirectory], list[dict[str, Any]]]) -> Callable[[RunDirectory], dict[int, float]]:
    """Training loss by step; each step must be there once."""

    def read(run: RunDirectory) -> dict[int, float]:
        lines = [line for line in read_log(run) if "loss" in line]
        losses = {line["step"]: line["loss"] for line in lines}
        assert len(losses) == len(lines), "a step was logged twice"
        return losses

    return read


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """While open, this process can write no file beyond a size: the disk is full, as far as it can tell."""

    @contextmanager
    def limit(num_bytes: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit
