"""A device on paper for tests, and a model without weights to simulate on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from elit_serve.catalogue import read_config
from elit_serve.files.latency import AnswerTime, Latency, StepCost

DEVICE = "Paper 100"
STEP_MS, DECODE_MS, ENCODE_MS = 2.0, 3.0, 1.0  # of a level and a picture; of pictures that end together


def latency(levels: tuple[int, ...] = (1, 2, 4), step_ms: float = STEP_MS) -> Latency:
    """Of a device on which pictures gain nothing from sharing a step."""
    steps = [
        StepCost(level=level, weak_level=weak, batch=batch, step_ms=step_ms * level * batch)
        for level in levels
        for weak in (None, levels[0])
        for batch in (1, 4)
    ]
    answers = [AnswerTime(batch=batch, decode_ms=DECODE_MS, encode_ms=ENCODE_MS) for batch in (1, 4)]
    return Latency(
        model="tiny",
        backbone_hash="0" * 12,
        device=DEVICE,
        dtype="float32",
        torch_version="2",
        elit_serve_version="0",
        date=datetime(2026, 1, 1, tzinfo=UTC),
        repeats=1,
        overhead_ms=DECODE_MS + ENCODE_MS,
        steps=tuple(steps),
        answers=tuple(answers),
    )


@pytest.fixture
def bare_model(tiny_model_dir: Path, make_quality: Callable[..., Any]) -> Path:
    """The tiny model with measured quality, what it costs on a device, and no weights."""
    (tiny_model_dir / "model.safetensors").unlink()
    quality = json.dumps(make_quality(model_hash=read_config(tiny_model_dir).model_hash))
    (tiny_model_dir / "quality.json").write_text(quality, encoding="utf-8")
    (tiny_model_dir / "latency").mkdir()
    for file in ("cost.json", "latency/paper-100.json"):
        (tiny_model_dir / file).write_text(latency().model_dump_json(), encoding="utf-8")
    return tiny_model_dir
