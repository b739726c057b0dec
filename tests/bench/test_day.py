"""A simulated fleet that follows its load."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from elit_serve.bench.comparison.command import SimulateOptions, run_scaled_fleet
from elit_serve.bench.comparison.day import ScaledFleet, simulate_day
from elit_serve.bench.rivals.routers import ROUTERS
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.fleet import Replica
from elit_serve.bench.simulate.workload import Setting
from elit_serve.catalogue import cost_table
from elit_serve.files.latency import read_latency
from elit_serve.scheduler import ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.routing.scaling import Scaling

QUALITY = QualityTable(levels={1: 0.5, 2: 0.75, 4: 1.0})
LOAD_S = 2.0


@pytest.fixture
def setting(cost: Path) -> Setting:
    return Setting(table=cost_table(read_latency(cost)).with_answers_alone(), num_steps=8, weak_cap=1)


def orders_at(loads: Sequence[tuple[float, float]], setting: Setting) -> list[tuple[Demand]]:
    """Evenly spaced, at each of these loads of one device until its time."""
    arrived_s, orders = 0.0, list[tuple[Demand]]()
    for load, until_s in loads:
        while arrived_s < until_s:
            orders.append((_picture(len(orders), arrived_s, setting),))
            arrived_s += 1 / (load * setting.saturated_rate_per_s)
    return orders


def _picture(request_id: int, arrived_s: float, setting: Setting) -> Demand:
    return Demand(
        request_id=request_id,
        shape=setting.shape,
        arrived_s=arrived_s,
        deadline_s=arrived_s + (2 + request_id % 3) * setting.solo_s,
        weak_caps=(setting.weak_cap,) * setting.num_steps,
        min_level=1,
        max_level=4,
    )


def scaled(setting: Setting, *, most: int) -> ScaledFleet:
    def made(number: int) -> Replica:
        device = SimulatedDevice(setting.table)
        return Replica(f"{number}", RequestScheduler(setting.table, ElasticPolicy(QUALITY)), device)

    scaling = Scaling(min_replicas=1, max_replicas=most, load_s=LOAD_S)
    return ScaledFleet(made, ROUTERS["elastic"](setting.table, 0, 1), scaling, setting, digest_s=0.1)


def test_replicas_follow_a_load_that_rises_and_falls_again_and_no_promise_is_broken(setting: Setting) -> None:
    orders = orders_at([(0.5, 8.0), (1.5, 20.0), (0.5, 36.0)], setting)
    day = simulate_day(scaled(setting, most=4), orders, QUALITY, setting)
    before, rising, high, after = (day.parts[place] for place in (4, 6, 12, 23))
    assert day.num_late == 0
    assert before.ready == after.ready == 1
    assert rising.present > rising.ready
    assert high.ready >= 3
    assert rising.quality < 0.97 * before.quality
    assert high.quality == pytest.approx(before.quality, abs=0.02)
    assert before.offered == pytest.approx(0.5, rel=0.1)


def test_a_replica_takes_orders_when_it_has_loaded_and_not_before(setting: Setting) -> None:
    fleet = scaled(setting, most=2)
    for order in orders_at([(2.0, 6.0)], setting):
        fleet.submit(order)
    wanted_s = next(at_s for at_s, _, present in fleet.sizes if present == 2)
    ready_s = next(at_s for at_s, ready, _ in fleet.sizes if ready == 2)
    assert ready_s == pytest.approx(wanted_s + LOAD_S)
    assert max(present for _, _, present in fleet.sizes) == 2


def test_a_day_is_told_and_drawn(cost: Path, tmp_path: Path) -> None:
    options = SimulateOptions(
        trace="step:to=3,share=0.4",
        cost=cost,
        loads=(0.8,),
        policies=("elastic",),
        slo_scales=(2.0, 4.0),
        quality=None,
        curves=("gentle",),
        seeds=1,
        requests=200,
        num_steps=8,
        weak_level=None,
        noise=0.0,
        bias=0.0,
        plot=tmp_path / "day.png",
        replicas=(1, 3),
        load_s=1.0,
    )
    report, table = run_scaled_fleet(options, Console(file=StringIO()))
    assert report["late"] == 0
    assert table.row_count == 24
    assert (tmp_path / "day.png").stat().st_size > 0
