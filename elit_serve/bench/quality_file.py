"""What a level is worth, for comparing policies: two stated curves, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elit_serve.errors import InvalidInput
from elit_serve.scheduler.quality import QualityTable, logarithmic

STATED = {"gentle": 0.75, "steep": 0.4}  # quality at the lowest level, where the full one counts 1
ROUNDING = 1e-9


class QualityFile(BaseModel):
    """`{"levels": {"4": 0.75, "16": 0.9, "64": 1.0}}`: quality by level, in (0, 1], rising and concave."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    levels: dict[int, float] = Field(min_length=1)

    @model_validator(mode="after")
    def _rises_and_bends_down(self) -> QualityFile:
        grid = sorted(self.levels)
        if grid[0] < 1 or not all(0 < quality <= 1 for quality in self.levels.values()):
            raise ValueError("levels are at least 1, qualities lie in (0, 1]")
        slopes = [(self.levels[high] - self.levels[low]) / (high - low) for low, high in pairwise(grid)]
        if any(slope < 0 for slope in slopes) or any(b > a + ROUNDING for a, b in pairwise(slopes)):
            raise ValueError("quality must rise with the level, by less and less for each latent")
        return self


def stated_curve(name: str, levels: Sequence[int]) -> QualityTable:
    """gentle or steep: every doubling of the level adds the same (`scheduler.quality.logarithmic`)."""
    if name not in STATED:
        raise InvalidInput("curve", name, f"one of {', '.join(STATED)}")
    return QualityTable(levels=logarithmic(levels, lowest=STATED[name]))


def read_quality(file: Path) -> QualityTable:
    try:
        return QualityTable(levels=QualityFile.model_validate_json(file.read_bytes()).levels)
    except OSError as error:
        raise InvalidInput("quality", str(file), f"it cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise InvalidInput("quality", str(file), "; ".join(problem["msg"] for problem in error.errors()[:3])) from None
