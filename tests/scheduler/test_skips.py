"""Steps that skip their cores: what they cost, who shares them, and which level they count as."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.drive import Driver
from elit_serve.scheduler.menu import Duration
from elit_serve.scheduler.replay import as_text, from_text
from elit_serve.scheduler.requests import Demand

UNGUIDED = StepKind("32x32", 1, None, is_skipped=True)
GUIDED = StepKind("32x32", 1, 1, is_skipped=True)


@pytest.fixture
def skipping(table: CostTable) -> CostTable:
    """A step that skips takes 2 ms and 0.5 ms for each image and pass."""
    skipped = {(kind, batch): 2 + batch * (1.0 if kind.weak_level else 0.5)
               for kind in (UNGUIDED, GUIDED) for batch in table.batches}  # fmt: skip
    return replace(table, steps_ms={**table.steps_ms, **skipped})


def demand(request_id: int, **fields: Any) -> Demand:
    values = {"weak_caps": (4,) * 4, "min_level": 4, "max_level": 16, "deadline_s": 10.0, "skipped": (1, 2)}
    return Demand(shape="32x32", request_id=request_id, arrived_s=0.0, **(values | fields))


def test_they_cost_the_same_at_every_level_and_add_no_level(table: CostTable, skipping: CostTable) -> None:
    assert skipping.levels == table.levels
    for level in (1, 4, 7, 16):
        assert skipping.step_ms(StepKind("32x32", level, min(4, level), is_skipped=True), 2) == 4
        assert skipping.step_ms(StepKind("32x32", level, None, is_skipped=True), 2) == 3
    computed = table.step_ms(StepKind("32x32", 16, 4), 1)
    assert skipping.step_ms(StepKind("32x32", 16, 4), 1) == computed
    assert skipping.alone_ms("32x32", (16,) * 4, (4,) * 4, skipped=(1, 2)) == 2 * computed + 2 * 3 + 10


def test_where_they_are_not_measured_they_cost_as_much_as_others(table: CostTable) -> None:
    assert not table.knows_skips("32x32")
    assert table.step_ms(StepKind("32x32", 8, 4, is_skipped=True), 2) == table.step_ms(StepKind("32x32", 8, 4), 2)


def test_pictures_of_different_levels_share_them(skipping: CostTable, quality: QualityTable) -> None:
    for policy in (ElasticPolicy(quality), FixedPolicy()):
        driver = Driver(RequestScheduler(skipping, policy), SimulatedDevice(skipping))
        assert driver.submit([demand(1, pinned=(4,) * 4), demand(2, pinned=(4, 16, 16, 16))]) is None
        driver.advance_to(10.0)
        launches = [(set(launch.request_ids), launch.kind) for launch, *_ in driver.launches]
        assert launches[:3] == [({1, 2}, StepKind("32x32", 4, 4)), ({1, 2}, GUIDED), ({1, 2}, GUIDED)]
        assert launches[3:] == [({1}, StepKind("32x32", 4, 4)), ({2}, StepKind("32x32", 16, 4))]
        assert [list(driver.endings[request_id].levels) for request_id in (1, 2)] == [[4] * 4, [4, 4, 4, 16]]


def test_a_free_picture_counts_as_of_the_level_of_the_step_before(skipping: CostTable, quality: QualityTable) -> None:
    scheduler = RequestScheduler(skipping, ElasticPolicy(quality))
    driver = Driver(scheduler, SimulatedDevice(skipping))
    assert driver.submit([demand(1)]) is None
    driver.advance_to(10.0)
    assert list(driver.endings[1].levels) == [16] * 4
    assert (scheduler.counters.granted_levels, scheduler.counters.replans) == (64, 0)


def test_what_skips_is_foretold_and_promised_to_be_faster(skipping: CostTable, quality: QualityTable) -> None:
    computed = Duration.of("32x32", (16,) * 4, (4,) * 4, skipping)
    skips = Duration.of("32x32", (16,) * 4, (4,) * 4, skipping, skipped=(1, 2))
    assert skips.crowded_ms[0] == computed.crowded_ms[0] - 2 * (7 - 3)
    within = {"deadline_s": 0.034, "pinned": (16,) * 4}  # 10 ms for the answer, 14 to spare
    scheduler = RequestScheduler(skipping, ElasticPolicy(quality))
    assert scheduler.submit([demand(1, skipped=(), **within)], 0.0) is not None
    assert scheduler.submit([demand(2, skipped=(1, 2), deadline_s=0.045, pinned=(16,) * 4)], 0.0) is None
    again = from_text(as_text(scheduler))
    assert again.decide(0.0) == scheduler.decide(0.0)
