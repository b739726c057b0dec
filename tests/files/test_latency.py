"""Which measurements belong together in a latency file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from elit_serve.catalogue import bundled_models, cost_table
from elit_serve.errors import CheckpointError
from elit_serve.files.latency import read_latency
from elit_serve.plans.step_kind import StepKind

BUNDLED = json.loads((bundled_models() / "garden64" / "latency" / "nvidia-h200.json").read_text("utf-8"))
UNMIXED = BUNDLED | {"steps": [step for step in BUNDLED["steps"] if not step.get("is_mixed")]}
MIXED = {"level": 4, "weak_level": 1, "batch": 2, "step_ms": 1.5, "is_mixed": True}


def with_steps(folder: Path, *steps: dict[str, Any]) -> Path:
    file = folder / "nvidia-h200.json"
    file.write_text(json.dumps(UNMIXED | {"steps": [*UNMIXED["steps"], *steps]}), "utf-8")
    return file


def test_mixed_steps_need_no_batch_of_one_and_no_unguided_ones(tmp_path: Path) -> None:
    costs = cost_table(read_latency(with_steps(tmp_path, MIXED, MIXED | {"batch": 4})))
    kind = StepKind("only", 4, 1, is_mixed=True)
    assert [batch for known, batch in costs.steps_ms if known == kind] == [2, 4]
    assert costs.steps_ms[kind, 2] == 1.5


@pytest.mark.parametrize(
    ("steps", "problem"),
    [
        ([MIXED | {"batch": 5}], "mixed steps must be of batches at which others are measured"),
        ([MIXED, MIXED | {"level": 8, "batch": 4}], "must be measured at the same batches"),
        ([MIXED | {"is_skipped": True}], "a mixed step skips nothing"),
    ],
)
def test_mixed_steps_that_nothing_can_be_made_of_are_refused(
    tmp_path: Path, steps: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        read_latency(with_steps(tmp_path, *steps))
