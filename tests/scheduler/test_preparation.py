"""What the device does before an image's first step, as encoding its prompt. Promises count it."""

from __future__ import annotations

import pytest

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import (
    CostTable,
    ElasticPolicy,
    ElasticSettings,
    FixedPolicy,
    QualityTable,
    RequestScheduler,
)
from elit_serve.scheduler.drive import AsPredicted, Driver
from elit_serve.scheduler.requests import Demand

SHAPE = "64x64"
TABLE = CostTable(steps_ms={(StepKind(SHAPE, 4), batch): 10.0 for batch in (1, 2, 4)}, overhead_ms=0.0)


def elastic() -> RequestScheduler:
    return RequestScheduler(TABLE, ElasticPolicy(QualityTable(levels={4: 1.0}), ElasticSettings(margin=0.0)))


def image(request_id: int, latency_ms: float, *, prepare_ms: float = 0.0, is_hard: bool = True) -> Demand:
    """Of two steps."""
    return Demand(
        request_id=request_id,
        shape=SHAPE,
        arrived_s=0.0,
        deadline_s=latency_ms / 1000,
        weak_caps=(None, None),
        min_level=4,
        max_level=4,
        prepare_s=prepare_ms / 1000,
        is_hard=is_hard,
    )


@pytest.mark.parametrize("scheduler", [elastic(), RequestScheduler(TABLE, FixedPolicy())])
def test_a_target_must_leave_time_for_it(scheduler: RequestScheduler) -> None:
    refusal = scheduler.submit([image(0, 29, prepare_ms=10)], 0.0)
    assert refusal is not None
    assert refusal.min_latency_ms is not None
    assert 30 <= refusal.min_latency_ms <= 31
    assert scheduler.submit([image(1, refusal.min_latency_ms, prepare_ms=10)], 0.0) is None


def test_it_is_done_once_before_the_first_step() -> None:
    driver = Driver(elastic(), AsPredicted())
    driver.submit([image(0, 100, prepare_ms=10), image(1, 100)])
    first, second = driver.next_launch(), driver.next_launch()
    assert first is not None
    assert second is not None
    assert (first.launch.prepare_ms, first.launch.device_ms) == pytest.approx((10, 20))
    assert (first.start_s, second.start_s, second.end_s) == pytest.approx((0.010, 0.020, 0.030))
    assert second.launch.prepare_ms == 0


def test_what_others_have_done_for_them_counts_beside_a_promise() -> None:
    scheduler = elastic()
    assert scheduler.submit([image(0, 41, prepare_ms=20)], 0.0) is None
    assert scheduler.would_take([image(1, 41)], 0.0)
    assert not scheduler.would_take([image(1, 41, prepare_ms=10)], 0.0)
    scheduler.cancel(0, 0.0)
    assert scheduler.would_take([image(1, 41, prepare_ms=10)], 0.0)


def test_who_was_promised_nothing_waits_with_what_it_needs() -> None:
    driver = Driver(elastic(), AsPredicted())
    driver.submit([image(0, 1, prepare_ms=50, is_hard=False), image(1, 21)])
    launched = driver.next_launch()
    assert launched is not None
    assert launched.launch.request_ids == (1,)
    driver.advance_to(1.0)
    assert driver.scheduler.counters.kept == 1
    assert driver.scheduler.counters.delivered == 2
