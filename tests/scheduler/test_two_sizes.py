"""Two sizes on one device, which share no launch: what that costs, on a simulated H200 with its measured steps."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest

from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import simulate
from elit_serve.catalogue import bundled_models, cost_table
from elit_serve.files.latency import read_latency
from elit_serve.scheduler import CostTable, ElasticPolicy, RequestScheduler
from elit_serve.scheduler.drive import Driver
from elit_serve.scheduler.quality import placeholder_quality
from elit_serve.scheduler.requests import Demand

STEPS = 40
WIDE = 0.94  # the tokens of 640 x 384 pixels for one of 512 x 512
SIZES = ("square", "wide")


@pytest.fixture(scope="module")
def table() -> CostTable:
    file = bundled_models() / "recipes/imagenet512-elit-dit-xl2/latency/nvidia-h200.json"
    square = cost_table(read_latency(file), "square")
    steps_ms = {
        (kind._replace(shape=shape), batch): share * step_ms
        for shape, share in zip(SIZES, (1.0, WIDE), strict=True)
        for (kind, batch), step_ms in square.steps_ms.items()
    }
    return CostTable(steps_ms=steps_ms, overhead_ms=square.overhead_ms, pads_batches=square.pads_batches)


def scheduler(table: CostTable) -> RequestScheduler:
    return RequestScheduler(table, ElasticPolicy(placeholder_quality(table.levels)))


def demand(
    table: CostTable, request_id: int, shape: str, at_s: float, scale: float, *, pinned: int | None = None
) -> Demand:
    """Due in `scale` times what it takes alone at full budget; promised unless its level is pinned."""
    full = table.levels[-1]
    alone_s = table.alone_ms(shape, (full,) * STEPS, (table.levels[0],) * STEPS) / 1000
    return Demand(
        request_id=request_id,
        shape=shape,
        arrived_s=at_s,
        deadline_s=at_s + scale * alone_s,
        weak_caps=(table.levels[0],) * STEPS,
        min_level=table.levels[0],
        max_level=full,
        pinned=None if pinned is None else (pinned,) * STEPS,
        is_hard=pinned is None,
    )


def images_per_s(table: CostTable, shapes: tuple[str, ...], level: int) -> float:
    """With 64 in flight all the time, whose sizes take turns."""
    driver, ids, now_s = Driver(scheduler(table), SimulatedDevice(table)), count(), 0.0
    while len(driver.endings) < 250:
        for request_id in (next(ids) for _ in range(64 - driver.scheduler.num_waiting - driver.scheduler.num_running)):
            driver.submit([demand(table, request_id, shapes[request_id % len(shapes)], now_s, 3.0, pinned=level)])
        now_s += 0.02
        driver.advance_to(now_s)
    return len(driver.endings) / now_s


@pytest.mark.parametrize("level", [64, 16])
def test_half_and_half_is_nearly_as_fast_as_each_alone(table: CostTable, level: int) -> None:
    square, wide = (images_per_s(table, (shape,), level) for shape in SIZES)
    assert images_per_s(table, SIZES, level) > 0.9 * (square + wide) / 2


@pytest.mark.parametrize("rate", [4.0, 8.0, 14.0])
def test_promises_of_both_are_kept_and_neither_is_starved(table: CostTable, rate: float) -> None:
    rng, at_s, demands = Random(1), 0.0, []
    for request_id in range(200):
        at_s += rng.expovariate(rate)
        demands.append(demand(table, request_id, rng.choice(SIZES), at_s, rng.choice((2, 3, 5))))
    fates = simulate(scheduler(table), demands, SimulatedDevice(table, noise=0.02)).fates
    taken = [fate for fate in fates if fate.refusal is None]
    assert all(fate.is_on_time for fate in taken)
    shares = [sum(fate.demand.shape == shape for fate in taken) for shape in SIZES]
    assert min(shares) > 0.35 * len(taken) > 0.35 * 0.6 * len(fates)
