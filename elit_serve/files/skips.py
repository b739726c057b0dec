"""`skips.json` of a model directory: how much its cores' outputs change between steps, fitted, so that a threshold says
before sampling which steps skip them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from elit_serve.files.guidance import WrittenGuidance
from elit_serve.files.measured import Figure, Level, Measured, read_measured
from elit_serve.files.writing import write_whole
from elit_serve.plans.bounds import MAX_COUNT, MAX_MEASURED, MAX_STEPS

MAX_DEGREE = 8
Coefficient = Annotated[float, Field(ge=-MAX_MEASURED, le=MAX_MEASURED)]


class SkipCalibration(Measured):
    """By which share the output of a core differs from that of the step before, from that of the timestep embedding.

    Both are mean absolute differences over the mean absolute value at the step before (TeaCache; paper, appendix A).

    polynomial: of the embedding's share, the constant coefficient first. lowest, highest: where it was fitted; outside
        the nearest end counts.
    error: root mean square of what is left, in the share of the output. mean: of the shares that were measured.
    steps, levels, guidance, num_samples: of the pictures behind it.
    provenance: command, date, device, versions.
    """

    format_version: int = Field(default=1, ge=1, le=1)
    model: str
    model_hash: str = Field(pattern=r"^[0-9a-f]{12}$")
    polynomial: tuple[Coefficient, ...] = Field(min_length=1, max_length=MAX_DEGREE + 1, strict=False)
    lowest: Figure
    highest: Figure
    error: Figure
    mean: Figure
    steps: tuple[Annotated[int, Field(ge=3, le=MAX_STEPS)], ...] = Field(min_length=1, strict=False)
    levels: tuple[Level, ...] = Field(min_length=1, strict=False)
    guidance: WrittenGuidance
    num_samples: int = Field(ge=1, le=MAX_COUNT)
    provenance: dict[str, str | int | float] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _rises(self) -> SkipCalibration:
        if self.lowest > self.highest:
            raise ValueError("lowest is above highest")
        return self

    def expected(self, shares: Sequence[float]) -> list[float]:
        """Of the core's output, from those of the embedding; never below 0."""
        return [self._at(min(max(share, self.lowest), self.highest)) for share in shares]

    def _at(self, share: float) -> float:
        value = 0.0
        for coefficient in reversed(self.polynomial):
            value = value * share + coefficient
        return max(0.0, value)


def write_skips(calibration: SkipCalibration, file: Path) -> None:
    """All of the file or none of it. Raises `InvalidInput` where it cannot be written."""
    write_whole(file, calibration.model_dump_json(indent=1) + "\n")


def read_skips(file: Path, *, model: Path | None = None) -> SkipCalibration:
    """Such a file. Raises `CheckpointError` (of `model`, if it lies in one) that lists all that is wrong with it."""
    return read_measured(SkipCalibration, file, file.name, model=model, missing=("skips", "a skips.json of a model"))
