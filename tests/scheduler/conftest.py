from __future__ import annotations

import pytest

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, QualityTable
from elit_serve.scheduler.quality import logarithmic


@pytest.fixture
def table() -> CostTable:
    """A launch takes 2 ms and 1 ms for every 4 latents of each image, guided as much again at the weak level.

    So an image alone at the lowest level, 4, takes 3 ms a step unguided and 4 ms guided.
    """
    steps_ms: dict[tuple[StepKind, int], float] = {}
    for level in (4, 8, 16):
        for batch in (1, 2, 4, 8):
            steps_ms[StepKind("32x32", level), batch] = 2 + batch * level / 4
            for weak in {4, level}:
                steps_ms[StepKind("32x32", level, weak), batch] = 2 + batch * (level + weak) / 4
    return CostTable(steps_ms=steps_ms, overhead_ms=10.0)


@pytest.fixture
def quality(table: CostTable) -> QualityTable:
    return QualityTable(levels=logarithmic(table.levels, lowest=0.5))
