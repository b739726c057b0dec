"""The measured files of a model directory: `latency/<device>.json`, checked and read; knows no torch."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.scheduler.cost import CostTable

MAX_FILE_BYTES = 1 << 20


class Measured(BaseModel):
    """Unknown fields are errors, and nothing changes after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class StepCost(Measured):
    """One measurement: a step of `batch` images at `level`, guided at `weak_level` or unguided.

    spread_ms: half the distance between the 10th and the 90th percentile of the repeats.
    """

    level: int = Field(ge=1)
    weak_level: int | None = Field(default=None, ge=1)
    batch: int = Field(ge=1)
    step_ms: float = Field(gt=0)
    spread_ms: float = Field(default=0.0, ge=0)


class Latency(Measured):
    """`latency/<device>.json`: measured milliseconds, and everything they were measured with.

    backbone_hash: of the backbone's shape, which decides the cost whatever the weights.
    dtype: what the model computes in; `fp8` for a quantised one.
    threads: CPU threads, or None on a GPU.
    graphs: whether steps were CUDA graphs captured for these batches, so that other batches are padded to the next.
    overhead_ms: from the end of an image's last step to its encoded file.
    command: what was run to measure.
    """

    format_version: int = Field(default=2, ge=2, le=2)
    model: str
    backbone_hash: str
    device: str
    dtype: str
    threads: int | None = Field(default=None, ge=1)
    graphs: bool = False
    torch_version: str
    elit_serve_version: str
    date: datetime = Field(strict=False)
    command: str = ""
    repeats: int = Field(ge=1)
    overhead_ms: float = Field(ge=0)
    steps: tuple[StepCost, ...] = Field(min_length=2, strict=False)

    @model_validator(mode="after")
    def _is_complete(self) -> Latency:
        if len({step.weak_level is None for step in self.steps}) != 2:
            raise ValueError("both guided and unguided steps are needed")
        by_batch: dict[int, set[tuple[int, int | None]]] = {}
        for step in self.steps:
            by_batch.setdefault(step.batch, set()).add((step.level, step.weak_level))
        if len({frozenset(points) for points in by_batch.values()}) != 1:
            raise ValueError("every (level, weak_level) must be measured at the same batches")
        return self

    @property
    def cost_table(self) -> CostTable:
        return CostTable(
            steps_ms={(step.level, step.weak_level, step.batch): step.step_ms for step in self.steps},
            overhead_ms=self.overhead_ms,
            pads_batches=self.graphs,
        )


def read_latency(file: Path, *, model: Path | None = None) -> Latency:
    """A latency file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it."""
    name = f"latency/{file.name}" if model else file.name
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise CheckpointError(model or file, [f"{name} is larger than {MAX_FILE_BYTES} bytes"])
        return Latency.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InvalidInput("cost", str(file), "a latency/<device>.json of a model directory") from None
    except OSError as error:
        raise CheckpointError(model or file, [f"{name} cannot be read: {error.strerror or error}"]) from None
    except ValidationError as error:
        problems = [f"{name}: {'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise CheckpointError(model or file, problems[:12]) from None
