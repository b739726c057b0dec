"""What a level is worth, for comparing policies: two stated curves, or a measured `quality.json`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from elit_serve import catalogue
from elit_serve.errors import CheckpointError, InvalidInput
from elit_serve.files import quality
from elit_serve.scheduler.quality import QualityTable, logarithmic

STATED = {"gentle": 0.75, "steep": 0.4}  # quality at the lowest level, where the full one counts 1


def stated_curve(name: str, levels: Sequence[int]) -> QualityTable:
    """gentle or steep: every doubling of the level adds the same (`scheduler.quality.logarithmic`)."""
    if name not in STATED:
        raise InvalidInput("curve", name, f"one of {', '.join(STATED)}")
    return QualityTable(levels=logarithmic(levels, lowest=STATED[name]))


def read_quality(file: Path) -> QualityTable:
    """The curve and the served plans of a `quality.json`."""
    return catalogue.ModelQuality(_read(file)).table


def read_measurements(file: Path) -> catalogue.ModelQuality:
    """All of a `quality.json`."""
    return catalogue.ModelQuality(_read(file))


def read_default_plan(file: Path) -> tuple[str, int, QualityTable]:
    """The model of a `quality.json`, the number of steps of its default plan, and the quality of that by level."""
    read = _read(file)
    steps = next(plan.steps for plan in read.plans if plan.name == read.default)
    return read.model, steps, catalogue.ModelQuality(read).table


def _read(file: Path) -> quality.Quality:
    try:
        return quality.read_quality(file)
    except CheckpointError as error:
        raise InvalidInput("quality", str(file), "; ".join(error.problems[:3])) from None
