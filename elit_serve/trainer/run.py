"""A run directory: the recipe it was started with, its log, and checkpoints that appear whole or not at all.

run.json                       recipe, classes, data, versions
log.jsonl                      one line per log interval and per validation
lock                           held by the process that trains, see `run_lock`
tensorboard/  samples/
checkpoints/step-00005000/     model.safetensors ema.safetensors optimizer.safetensors state.json

Where weights are spread over ranks each writes its own rows: model-00001-of-00008.safetensors and so on. (What
torch.distributed.checkpoint writes cannot be read without unpickling.)
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elit_serve.errors import RunError
from elit_serve.files.opening import MAX_JSON_BYTES, open_file, read_file
from elit_serve.files.validation import problems_in
from elit_serve.trainer.distributed import ALONE, World
from elit_serve.trainer.recipe import MAX_STEPS, Recipe

logger = logging.getLogger(__name__)

TENSORS = ("model", "ema", "optimizer")  # a file of each in a checkpoint
MAX_LOG_BYTES = 4 << 30
MAX_SHARDS = 4096
MAX_NAMED = 12
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelHash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class _Written(BaseModel):
    """What a run writes and reads again: unknown fields are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataFacts(_Written):
    """The photographs that are trained on.

    source: a name for people. classes: how many different ones, or captions. sha256: of their content, see `identity`;
    held_out_sha256: of those that are validated on. A run that was begun before these were noted has none.
    """

    source: str
    sha256: Sha256
    held_out_sha256: Sha256 | None = None
    training_pictures: int = Field(ge=1)
    classes: int = Field(ge=1)


class RunFacts(_Written):
    """`run.json`. The recipe and the data's source are those with which the run last went on.

    classes: those of the data; none where it has captions. autoencoder_sha256: of the autoencoder's folder, see
    `engine.autoencoders.folder.fingerprint`; None without one, and in a run that was begun before it was noted.
    encoder_sha256: of the text encoder that made the texts beside latents; None where there are none.
    upcycled, teacher: hashes of the models that it began with, and that it learns from.
    """

    recipe: Recipe
    classes: tuple[str, ...]
    data: DataFacts
    autoencoder_sha256: Sha256 | None = None
    encoder_sha256: Sha256 | None = None
    upcycled: ModelHash | None = None
    teacher: ModelHash | None = None
    versions: dict[str, str]


class TrainState(_Written):
    """Where a run stands. `step` counts finished steps; the loss window is not logged yet.

    damaged: pictures met so far. in_memory: whether these were left out at the start, or replaced when they came.
    """

    step: int = Field(ge=0, le=MAX_STEPS)
    window_loss: float
    window_distillation: float = 0.0
    window_steps: int = Field(ge=0, le=MAX_STEPS)
    damaged: tuple[str, ...] = ()
    in_memory: bool = True


class _SavedState(TrainState):
    """`state.json`. files: the SHA-256 of each file of tensors beside it. shards: how many of each kind there are."""

    files: dict[str, Sha256]
    shards: int = Field(default=1, ge=1, le=MAX_SHARDS)

    @model_validator(mode="after")
    def _names_every_file(self) -> _SavedState:
        expected = [_shard_name(name, rank, self.shards) for rank in range(self.shards) for name in TENSORS]
        if set(self.files) != set(expected):
            raise ValueError(f"files must name {', '.join(expected[:MAX_NAMED])}")
        return self


class _LogLine(BaseModel):
    """What every line of `log.jsonl` has."""

    step: int = Field(ge=0)


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
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from None
        self.go_on_with(facts)

    def go_on_with(self, facts: RunFacts) -> None:
        """Writes what the run is from now on."""
        try:
            _write_whole(self.path / "run.json", facts.model_dump_json(indent=2) + "\n")
        except OSError as error:
            raise RunError(f"{self.path} cannot be written: {error.strerror}") from None

    def facts(self) -> RunFacts:
        try:
            return RunFacts.model_validate_json(read_file(self.path / "run.json", MAX_JSON_BYTES))
        except OSError as error:
            raise RunError(f"{self.path} holds no run: run.json: {error.strerror}") from None
        except ValidationError as error:
            raise RunError(f"{self.path}/run.json is damaged: {'; '.join(problems_in(error))}") from None

    def steps(self) -> list[int]:
        """Steps with a checkpoint, rising; what else lies among them is none."""
        names = {folder.name for folder in self._checkpoints.glob("step-*") if folder.is_dir()}
        steps = (int(name[5:]) for name in names if name[5:].isdecimal())
        return sorted(step for step in steps if self._folder(step).name in names)

    def save(self, snapshot: Snapshot, keep: int, world: World = ALONE) -> None:
        """Writes a checkpoint and then removes the oldest beyond `keep`. With several ranks each has its own rows of
        every tensor, and all must save.

        A failure (full disk, no permission) raises `RunError` and leaves all earlier checkpoints as they were. What a
        killed save or removal left behind (a name with a dot in front) goes with the next save. A step that is saved
        already stays: a step is always the same.
        """
        step = snapshot.state.step
        if world.any(step in self.steps()):
            return
        with self._together(step, world):
            if world.is_main:
                self._make_room(step)
        with self._together(step, world):
            digests = self._write_tensors(snapshot, world)
        everyone = world.gathered(b"".join(digests))
        with self._together(step, world):
            if world.is_main:
                self._finish(snapshot.state, everyone)
        if world.is_main:
            for old in self.steps()[:-keep]:
                self._folder(old).rename(self._hidden(old))  # never a half-removed folder under a checkpoint's name
                shutil.rmtree(self._hidden(old), ignore_errors=True)

    @contextmanager
    def _together(self, step: int, world: World) -> Iterator[None]:
        """What fails on one rank inside fails on all, and leaves no part of a checkpoint."""
        problem: Exception | None = None
        try:
            yield
        except (OSError, SafetensorError) as error:
            problem = error
        if not world.any(problem is not None):
            return
        if world.is_main:
            shutil.rmtree(self._hidden(step), ignore_errors=True)
        kept = f"the last good checkpoint is at step {self.steps()[-1]}" if self.steps() else "there is none yet"
        reason = problem or "another rank failed"
        raise RunError(f"the checkpoint of step {step} cannot be written to {self.path}: {reason}; {kept}") from None

    def _make_room(self, step: int) -> None:
        for leftover in self._checkpoints.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._hidden(step).mkdir(parents=True)

    def _write_tensors(self, snapshot: Snapshot, world: World) -> list[bytes]:
        """This rank's files. -> their SHA-256, in the order of `TENSORS`"""
        digests = []
        for name in TENSORS:
            file = self._hidden(snapshot.state.step) / f"{_shard_name(name, world.rank, world.size)}.safetensors"
            save_file(dict(getattr(snapshot, name)), file)
            digests.append(bytes.fromhex(_sha256(file)))
        return digests

    def _finish(self, state: TrainState, digests: Sequence[bytes]) -> None:
        """digests: of each rank, one behind another."""
        names = [_shard_name(name, rank, len(digests)) for rank in range(len(digests)) for name in TENSORS]
        whole = b"".join(digests)
        size = len(whole) // len(names)
        files = {name: whole[place * size : (place + 1) * size].hex() for place, name in enumerate(names)}
        saved = _SavedState(**state.model_dump(), files=files, shards=len(digests))
        staging = self._hidden(state.step)
        (staging / "state.json").write_text(saved.model_dump_json() + "\n", encoding="utf-8")
        staging.rename(self._folder(state.step))

    def load(self, step: int | None = None) -> Snapshot:
        """The checkpoint of a step, or the newest that is whole; a damaged one is passed over with a warning."""
        steps = self.steps()
        if not steps:
            raise RunError(f"{self.path} holds no checkpoint")
        if step is not None and step not in steps:
            raise RunError(f"{self.path} has no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
        if step is not None:
            return self._read(step)
        for newest in reversed(steps):
            try:
                return self._read(newest)
            except RunError as damage:
                logger.warning("skipped the checkpoint of step %d: %s", newest, damage)
        raise RunError(f"{self.path} holds no whole checkpoint: those of {', '.join(map(str, steps))} are damaged")

    def _read(self, step: int) -> Snapshot:
        folder = self._folder(step)
        try:
            saved = _SavedState.model_validate_json(read_file(folder / "state.json", MAX_JSON_BYTES))
            if saved.step != step:
                raise RunError(f"{folder} is damaged: state.json is of step {saved.step}")
            tensors = {name: _read_shards(folder, name, saved) for name in TENSORS}
        except ValidationError as error:
            raise RunError(f"{folder} is damaged: state.json: {'; '.join(problems_in(error))}") from None
        except OSError as error:
            name = Path(str(error.filename)).name
            raise RunError(f"{folder} is damaged: {name}: {error.strerror}") from None
        except (SafetensorError, ValueError) as error:
            raise RunError(f"{folder} is damaged: {error}") from None
        return Snapshot(**tensors, state=TrainState(**saved.model_dump(exclude={"files", "shards"})))

    def log(self, record: Mapping[str, object]) -> None:
        try:
            with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(dict(record)) + "\n")
        except OSError as error:
            raise RunError(f"{self.path}/log.jsonl cannot be written: {error.strerror}") from None

    def forget_after(self, step: int) -> None:
        """Drops what is later than `step`, so that a resumed run writes it once: log lines, and checkpoints, which
        `load` found damaged."""
        log = self.path / "log.jsonl"
        try:
            if log.exists():
                _write_whole(log, "".join(self._lines_until(step, log)))
            for later in (saved for saved in self.steps() if saved > step):
                shutil.rmtree(self._hidden(later), ignore_errors=True)
                self._folder(later).rename(self._hidden(later))  # it goes with the next save
        except OSError as error:
            raise RunError(f"{error.filename or log} cannot be read or written: {error.strerror}") from None

    def _lines_until(self, step: int, log: Path) -> Iterator[str]:
        """The log's lines up to a step. One that was cut off, which can only be the last, is dropped."""
        with open_file(log, MAX_LOG_BYTES) as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                try:
                    if _LogLine.model_validate_json(line).step <= step:
                        yield line.decode()
                except ValueError:  # pydantic's, or of bytes that are no UTF-8
                    raise RunError(f"{log} is damaged: line {number} is no record of a step") from None

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


def _sha256(file: Path) -> str:
    with open_file(file) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _shard_name(name: str, rank: int, ranks: int) -> str:
    return name if ranks == 1 else f"{name}-{rank + 1:05d}-of-{ranks:05d}"


def _read_shards(folder: Path, name: str, saved: _SavedState) -> Mapping[str, Tensor]:
    names = [_shard_name(name, rank, saved.shards) for rank in range(saved.shards)]
    shards = [_read_tensors(folder / f"{each}.safetensors", saved.files[each]) for each in names]
    if any(shard.keys() != shards[0].keys() for shard in shards):
        raise ValueError(f"{name}: its shards are of different models")
    return shards[0] if len(shards) == 1 else Joined(shards)


class Joined(Mapping[str, Tensor]):
    """Tensors whose rows lie in several shards; each is put together when it is asked for."""

    def __init__(self, shards: Sequence[Mapping[str, Tensor]]) -> None:
        self._shards = shards

    def __getitem__(self, name: str) -> Tensor:
        rows = [shard[name] for shard in self._shards]
        return torch.cat(rows) if rows[0].dim() else rows[0]  # a number is the same on every rank

    def __iter__(self) -> Iterator[str]:
        return iter(self._shards[0])

    def __len__(self) -> int:
        return len(self._shards[0])


def _read_tensors(file: Path, digest: str) -> dict[str, Tensor]:
    """The tensors of a file; raises `ValueError` if it is not as it was written."""
    if _sha256(file) != digest:
        raise ValueError(f"{file.name} is cut off or altered")
    return load_file(file)
