"""A stated guess of quality until a model directory brings a measured `quality.json`; nothing here is measured."""

from __future__ import annotations

from collections.abc import Sequence

from elit_serve.scheduler.quality import QualityTable, logarithmic

LOWEST_LEVEL_QUALITY = 0.75  # of a picture at the lowest level, where one at the highest counts 1


def placeholder_quality(levels: Sequence[int]) -> QualityTable:
    """An assumed concave curve over these levels: 0.75 at the lowest, 1 at the highest, the same for every doubling."""
    return QualityTable(levels=logarithmic(levels, lowest=LOWEST_LEVEL_QUALITY))
