"""A run directory: the recipe it was started with, its log, and checkpoints that appear whole or not at all.

run.json                       recipe, classes, data, versions
log.jsonl                      one line per log interval and per validation
tensorboard/  samples/
checkpoints/step-00005000/     model.safetensors ema.safetensors optimizer.safetensors state.json
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elit_serve.digits import whole_number
from elit_serve.errors import RunError
from elit_serve.files import MAX_JSON_BYTES, read_file
from elit_serve.trainer.recipe import Recipe


class RunFacts(BaseModel):
    """`run.json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: Recipe
    classes: tuple[str, ...]
    data: dict[str, Any]
    versions: dict[str, str]


class TrainState(BaseModel):
    """`state.json`: where a run stands. `step` counts finished steps; the loss window is not logged yet."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    step: int
    window_loss: float
    window_steps: int
    damaged: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a run needs to go on: tensors by name."""

    model: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: TrainState


class RunDirectory:
    """Reads and writes a run's files."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._checkpoints = path / "checkpoints"

    def create(self, facts: RunFacts) -> None:
        """Starts a new run; the folder must not hold one already."""
        if (self.path / "run.json").exists() or self.steps():
            raise RunError(f"{self.path} already holds a run; continue it with --resume, or choose another folder")
        try:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
            _write_whole(self.path / "run.json", facts.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from None

    def facts(self) -> RunFacts:
        try:
            return RunFacts.model_validate_json(read_file(self.path / "run.json", MAX_JSON_BYTES))
        except OSError as error:
            raise RunError(f"{self.path} holds no run: run.json: {error.strerror}") from None
        except ValidationError as error:
            raise RunError(f"{self.path}/run.json is damaged: {error.error_count()} problems") from None

    def steps(self) -> list[int]:
        """Steps with a whole checkpoint, rising."""
        names = (folder.name.removeprefix("step-") for folder in self._checkpoints.glob("step-*"))
        return sorted(step for name in names if (step := whole_number(name)) is not None)

    def save(self, snapshot: Snapshot, keep: int) -> None:
        """Writes a checkpoint and then removes the oldest beyond `keep`.

        A failure (full disk, no permission) raises `RunError` and leaves all earlier checkpoints as they were. What a
        killed save or removal left behind (a name with a dot in front) goes with the next save. A step that is saved
        already stays: a step is always the same.
        """
        step = snapshot.state.step
        if step in self.steps():
            return
        for leftover in self._checkpoints.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        staging = self._hidden(step)
        try:
            staging.mkdir(parents=True)
            for name in ("model", "ema", "optimizer"):
                save_file(dict(getattr(snapshot, name)), staging / f"{name}.safetensors")
            (staging / "state.json").write_text(snapshot.state.model_dump_json() + "\n", encoding="utf-8")
            staging.rename(self._folder(step))
        except (OSError, SafetensorError) as error:
            shutil.rmtree(staging, ignore_errors=True)
            kept = f"the last good checkpoint is at step {self.steps()[-1]}" if self.steps() else "there is none yet"
            raise RunError(f"the checkpoint of step {step} cannot be written to {self.path}: {error}; {kept}") from None
        for old in self.steps()[:-keep]:
            self._folder(old).rename(self._hidden(old))  # never a half-removed folder under a checkpoint's name
            shutil.rmtree(self._hidden(old), ignore_errors=True)

    def load(self, step: int | None = None) -> Snapshot:
        """The checkpoint of a step, or the newest."""
        steps = self.steps()
        if not steps:
            raise RunError(f"{self.path} holds no checkpoint")
        if step is not None and step not in steps:
            raise RunError(f"{self.path} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
        folder = self._folder(steps[-1] if step is None else step)
        try:
            state = TrainState.model_validate_json((folder / "state.json").read_bytes())
            tensors = {name: load_file(folder / f"{name}.safetensors") for name in ("model", "ema", "optimizer")}
        except (OSError, SafetensorError, ValidationError) as error:
            raise RunError(f"{folder} is damaged: {error}") from None
        return Snapshot(**tensors, state=state)

    def log(self, record: Mapping[str, object]) -> None:
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(record)) + "\n")
        except OSError as error:
            raise RunError(f"{self.path}/log.jsonl cannot be written: {error.strerror}") from None

    def forget_after(self, step: int) -> None:
        """Drops log lines later than `step`, so that a resumed run writes them once."""
        log = self.path / "log.jsonl"
        if not log.exists():
            return
        whole = [line for line in log.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        try:
            _write_whole(log, "".join(line for line in whole if json.loads(line)["step"] <= step))
        except OSError as error:
            raise RunError(f"{log} cannot be written: {error.strerror}") from None

    def _folder(self, step: int) -> Path:
        return self._checkpoints / f"step-{step:08d}"

    def _hidden(self, step: int) -> Path:
        """Where a checkpoint lies while it is written or removed."""
        return self._checkpoints / f".step-{step:08d}"


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that is there whole or not at all."""
    staging = path.with_name(f".{path.name}")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)
