"""A device on paper for comparisons of policies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from elit_serve.bench.load.subjects import Subject

THREE = tuple(Subject(label=class_id) for class_id in range(3))


@pytest.fixture
def cost(tmp_path: Path) -> Path:
    """Level k takes 2 + k ms for each image of a batch, and 3 ms more."""
    steps = [
        {"level": level, "weak_level": weak, "batch": batch, "step_ms": 3.0 + batch * (2 + level)}
        for level in (1, 2, 4)
        for weak in (None, 1)
        for batch in (1, 2, 4, 8)
    ]
    file = tmp_path / "paper.json"
    facts = {"model": "m", "backbone_hash": "0", "device": "paper", "dtype": "float32", "torch_version": "2"}
    made = {"elit_serve_version": "0", "date": "2026-01-01T00:00:00Z", "repeats": 1, "overhead_ms": 2.0}
    file.write_text(json.dumps({**facts, **made, "steps": steps}))
    return file
