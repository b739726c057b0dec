"""`latency/<device>.json` of a model directory: what denoising steps take on a device, and how that was measured."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from elit_serve.files.measured import Level, Measured, ShapeName, read_measured
from elit_serve.plans.bounds import MAX_BATCH, MAX_COUNT, MAX_MS, MIN_MS
from elit_serve.plans.step_kind import StepKind

Batch = Annotated[int, Field(ge=1, le=MAX_BATCH, strict=False)]  # as keys in JSON, which are text
TextMs = Annotated[float, Field(ge=0, le=MAX_MS)]


class StepCost(Measured):
    """One measurement: a step of `batch` images at `level`, guided at `weak_level` or unguided.

    is_skipped: whether it skips its cores, see `plans.skips`.
    is_mixed: whether its images run at levels of their own, none above `level`; it costs the same whatever these are.
    shape: of the samples, by its name; None is the model's only one.
    spread_ms: half the distance between the 10th and the 90th percentile of the repeats.
    is_interpolated: not measured, but read off a line through others of the same batch.
    """

    level: Level
    weak_level: Level | None = None
    batch: int = Field(ge=1, le=MAX_BATCH)
    step_ms: float = Field(ge=MIN_MS, le=MAX_MS)
    spread_ms: float = Field(default=0.0, ge=0, le=MAX_MS)
    is_interpolated: bool = False
    shape: ShapeName | None = None
    is_skipped: bool = False
    is_mixed: bool = False

    def kind(self, only_shape: str) -> StepKind:
        """What was measured. only_shape: of steps that name none."""
        shape = self.shape or only_shape
        return StepKind(shape, self.level, self.weak_level, self.is_skipped, self.is_mixed)


class AnswerTime(Measured):
    """One measurement: what follows the last step of `batch` images that end together.

    decode_ms: from the samples on the device to pictures on the host. encode_ms: from then until all are PNG files (or
    safetensors, where there are no pictures).
    is_interpolated: not measured, but as many times what one takes.
    """

    batch: int = Field(ge=1, le=MAX_BATCH)
    decode_ms: float = Field(ge=0, le=MAX_MS)
    encode_ms: float = Field(ge=0, le=MAX_MS)
    is_interpolated: bool = False
    shape: ShapeName | None = None


class Latency(Measured):
    """`latency/<device>.json`: measured milliseconds, and everything they were measured with.

    backbone_hash: of the backbone's shape, which decides the cost whatever the weights.
    dtype: what the model computes in; `fp8` for a quantised one.
    threads: CPU threads, or None on a GPU.
    graphs: whether steps were CUDA graphs captured for these batches, so that other batches are padded to the next.
    overhead_ms: from the end of an image's last step to its encoded file, where it ends alone.
    answers: the same of several that end together; empty in a file that is older than that.
    text_ms: of a model of prompts, milliseconds to encode so many together that were not known; empty in a file that
    does not tell.
    autoencoder_hash: of what decoded; see `engine.autoencoders.choice`.
    command: what was run to measure.
    """

    format_version: int = Field(default=2, ge=2, le=2)
    model: str
    backbone_hash: str
    device: str
    dtype: str
    threads: int | None = Field(default=None, ge=1, le=MAX_COUNT)
    graphs: bool = False
    torch_version: str
    elit_serve_version: str
    date: datetime = Field(strict=False)
    command: str = ""
    repeats: int = Field(ge=1, le=MAX_COUNT)
    overhead_ms: float = Field(ge=0, le=MAX_MS)
    steps: tuple[StepCost, ...] = Field(min_length=2, strict=False)
    answers: tuple[AnswerTime, ...] = Field(default=(), strict=False)
    text_ms: dict[Batch, TextMs] = Field(default_factory=dict, strict=False)
    autoencoder_hash: str | None = Field(default=None, max_length=100)

    @model_validator(mode="after")
    def _is_complete(self) -> Latency:
        unmixed = [step for step in self.steps if not step.is_mixed]
        for skips in {step.is_skipped for step in unmixed} | {False}:
            if len({step.weak_level is None for step in unmixed if step.is_skipped == skips}) != 2:
                raise ValueError("both guided and unguided steps are needed")
        if any(step.is_mixed and step.is_skipped for step in self.steps):
            raise ValueError("a mixed step skips nothing")
        found: dict[tuple[str | None, bool], dict[int, set[tuple[int, int | None, bool]]]] = {}
        for step in self.steps:
            by_batch = found.setdefault((step.shape, step.is_mixed), {})
            by_batch.setdefault(step.batch, set()).add((step.level, step.weak_level, step.is_skipped))
        if any(len(set(map(frozenset, by_batch.values()))) > 1 for by_batch in found.values()):
            raise ValueError("every (level, weak_level) must be measured at the same batches")
        if any(not by_batch.keys() <= found.get((shape, False), {}).keys() for (shape, _), by_batch in found.items()):
            raise ValueError("mixed steps must be of batches at which others are measured")
        if self.answers and {answer.shape for answer in self.answers} != {step.shape for step in self.steps}:
            raise ValueError("answers must be of the shapes that steps are of")
        return self


def read_latency(file: Path, *, model: Path | None = None) -> Latency:
    """A latency file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it."""
    name = f"latency/{file.name}" if model else file.name
    missing = ("cost", "a latency/<device>.json of a model directory")
    return read_measured(Latency, file, name, model=model, missing=missing)
