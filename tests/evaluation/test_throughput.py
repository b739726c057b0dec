"""What a cost table says of a saturated engine, as figures of a report."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from elit_serve.evaluation.runs.throughput import SaturatedEngine, Throughput
from elit_serve.files.latency import Latency, StepCost
from elit_serve.plans.guidance import Guidance
from elit_serve.plans.plan import Plan

LATENCY = Latency(
    model="tiny",
    backbone_hash="0" * 12,
    device="cpu",
    dtype="float32",
    torch_version="2",
    elit_serve_version="0",
    date=datetime(2026, 1, 1, tzinfo=UTC),
    repeats=1,
    overhead_ms=5.0,
    steps=tuple(
        StepCost(level=level, weak_level=weak, batch=batch, step_ms=level * batch * (1 if weak is None else 2))
        for level in (1, 4)
        for weak in (None, 1)
        for batch in (1, 8)
    ),
)
LATE = Guidance(method="ccfg", scale=2.0, weak_level=1, interval=(0.5, 1.0))


def test_a_picture_takes_its_share_of_every_step() -> None:
    engine = SaturatedEngine(latency=LATENCY, batch=8)
    assert engine.images_per_second(Plan(levels=(4, 1))) == pytest.approx(1000 / (4 + 1))
    assert engine.images_per_second(Plan(levels=(4, 4), guidance=LATE)) == pytest.approx(1000 / (4 + 8))
    assert engine.compared(Plan(levels=(4, 1)), 190.0) == Throughput(
        images_per_second=190.0,
        saturated_images_per_second=pytest.approx(200),
        share_of_saturated=pytest.approx(0.95),
    )


def test_a_batch_beyond_the_measured_ones_runs_at_the_rate_of_the_largest() -> None:
    largest, beyond = (SaturatedEngine(latency=LATENCY, batch=batch) for batch in (8, 30))
    assert beyond.images_per_second(Plan(levels=(4,))) == largest.images_per_second(Plan(levels=(4,)))


def test_nothing_is_said_of_a_device_that_is_not_measured() -> None:
    engine = SaturatedEngine(latency=None, batch=8)
    assert engine.compared(Plan(levels=(4,)), 3.0).share_of_saturated is None
