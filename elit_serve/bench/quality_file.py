"""What a level is worth, for comparing policies: two stated curves, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elit_serve.errors import InvalidInput
from elit_serve.scheduler.quality import MeasuredPlan, QualityTable, logarithmic

STATED = {"gentle": 0.75, "steep": 0.4}  # quality at the lowest level, where the full one counts 1
ROUNDING = 1e-9


class PlanEntry(BaseModel):
    """See `scheduler.quality.MeasuredPlan`."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    name: str
    weak_caps: tuple[Annotated[int, Field(ge=1)] | None, ...] = Field(min_length=1)
    ceilings: tuple[Annotated[int, Field(ge=1)], ...]
    quality: float = Field(gt=0, le=1)

    @model_validator(mode="after")
    def _is_complete(self) -> PlanEntry:
        if len(self.weak_caps) != len(self.ceilings):
            raise ValueError(f"plan {self.name}: a weak cap and a ceiling for every step")
        return self


class QualityFile(BaseModel):
    """`{"levels": {"4": 0.75, "16": 0.9, "64": 1.0}}`: quality by level, in (0, 1], rising and concave; and plans."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)

    levels: dict[int, float] = Field(min_length=1)
    plans: tuple[PlanEntry, ...] = ()

    @model_validator(mode="after")
    def _rises_and_bends_down(self) -> QualityFile:
        grid = sorted(self.levels)
        if grid[0] < 1 or not all(0 < quality <= 1 for quality in self.levels.values()):
            raise ValueError("levels are at least 1, qualities lie in (0, 1]")
        slopes = [(self.levels[high] - self.levels[low]) / (high - low) for low, high in pairwise(grid)]
        if any(slope < 0 for slope in slopes) or any(b > a + ROUNDING for a, b in pairwise(slopes)):
            raise ValueError("quality must rise with the level, by less and less for each latent")
        if any(min(plan.ceilings) < grid[0] for plan in self.plans):
            raise ValueError(f"no ceiling of a plan lies below the lowest level, {grid[0]}")
        return self


def stated_curve(name: str, levels: Sequence[int]) -> QualityTable:
    """gentle or steep: every doubling of the level adds the same (`scheduler.quality.logarithmic`)."""
    if name not in STATED:
        raise InvalidInput("curve", name, f"one of {', '.join(STATED)}")
    return QualityTable(levels=logarithmic(levels, lowest=STATED[name]))


def read_quality(file: Path) -> QualityTable:
    try:
        read = QualityFile.model_validate_json(file.read_bytes())
        return QualityTable(levels=read.levels, plans=tuple(MeasuredPlan(**entry.model_dump()) for entry in read.plans))
    except OSError as error:
        raise InvalidInput("quality", str(file), f"it cannot be read: {error.strerror or error}") from None
    except ValidationError as error:
        raise InvalidInput("quality", str(file), "; ".join(problem["msg"] for problem in error.errors()[:3])) from None
