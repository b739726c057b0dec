"""Several simulated replicas on one clock, and who routes between them."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from elit_serve.bench.comparison.command import SimulateOptions, run_fleet_comparison
from elit_serve.bench.comparison.fleets import ALL_ROUTERS, fast, pooled
from elit_serve.bench.rivals.routers import ROUTERS, Blind, RoundRobin
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.fleet import Fleet, Replica, Routing, simulate_fleet
from elit_serve.bench.simulate.workload import Setting
from elit_serve.catalogue import cost_table
from elit_serve.errors import InvalidInput
from elit_serve.files.latency import read_latency
from elit_serve.scheduler import CostTable, ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.requests import Demand

QUIET = Console(file=StringIO())


def options(cost: Path, **changes: object) -> SimulateOptions:
    given = {
        "trace": "gamma:cv=1.5",
        "cost": cost,
        "loads": (0.8, 1.4),
        "policies": ("elastic",),
        "slo_scales": (2.0, 4.0),
        "quality": None,
        "curves": ("gentle", "steep"),
        "seeds": 2,
        "requests": 20,
        "num_steps": 8,
        "weak_level": None,
        "noise": 0.1,
        "bias": 0.0,
        "plot": None,
        "replicas": (3, 3),
    }
    return SimulateOptions(**{**given, **changes})  # type: ignore[arg-type]


@pytest.fixture
def table(cost: Path) -> CostTable:
    return cost_table(read_latency(cost)).with_answers_alone()


def replica(name: str, table: CostTable) -> Replica:
    scheduler = RequestScheduler(table, ElasticPolicy(QualityTable(levels={1: 0.5, 2: 0.75, 4: 1.0})))
    return Replica(name, scheduler, SimulatedDevice(table))


def picture(request_id: int, table: CostTable, *, arrived_s: float = 0.0, target_s: float = 1.0) -> tuple[Demand]:
    """Eight steps of at least 6 ms, alone."""
    shape = table.shapes[0]
    deadline_s = arrived_s + target_s
    demand = Demand(
        request_id=request_id,
        shape=shape,
        arrived_s=arrived_s,
        deadline_s=deadline_s,
        weak_caps=(1,) * 8,
        min_level=1,
        max_level=4,
    )
    return (demand,)


class InOrder(Blind):
    """Asks in the order in which replicas were added."""

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:  # noqa: ARG002
        return replicas


def fleet_of(table: CostTable, num_replicas: int, routing: Routing) -> Fleet:
    return Fleet([replica(f"{place}", table) for place in range(num_replicas)], routing, digest_s=0.25)


def test_a_refusal_goes_on_to_the_next_until_nobody_is_left(table: CostTable) -> None:
    fleet = fleet_of(table, 2, InOrder(seed=0))
    orders = [picture(request_id, table, target_s=0.08) for request_id in range(4)]
    run = simulate_fleet(fleet, orders)
    assert [fate.is_on_time for fate in run.fates] == [True, True, False, False]
    assert [fate.refusal is None for fate in run.fates] == [True, True, False, False]
    assert run.num_asked == 1 + 2 + 2 + 2


def test_round_robin_begins_with_the_next_each_time(table: CostTable) -> None:
    fleet = fleet_of(table, 3, RoundRobin(seed=0))
    for request_id in range(5):
        assert fleet.submit(picture(request_id, table), 0.0) is None
    assert [replica.num_here for replica in fleet.replicas] == [2, 2, 1]


def test_the_server_s_router_spreads_a_burst_between_two_digests(table: CostTable) -> None:
    fleet = fleet_of(table, 3, ROUTERS["elastic"](table, 0, 1))
    for request_id in range(6):
        assert fleet.submit(picture(request_id, table, target_s=5.0), 0.0) is None
    assert [replica.num_here for replica in fleet.replicas] == [2, 2, 2]


def test_processes_that_route_know_of_each_other_s_orders_by_digests_alone(table: CostTable) -> None:
    fleet = fleet_of(table, 2, ROUTERS["elastic"](table, 0, 2))
    for request_id in range(2):
        assert fleet.submit(picture(request_id, table, target_s=5.0), 0.0) is None
    fleet.advance_to(0.5)
    assert fleet.replicas[0].num_here == fleet.replicas[1].num_here == 0
    for request_id in range(2, 6):
        assert fleet.submit(picture(request_id, table, arrived_s=0.5, target_s=5.0), 0.5) is None
    assert [replica.num_here for replica in fleet.replicas] == [2, 2]


def test_who_joins_gets_orders_and_who_is_drained_ends_what_it_has(table: CostTable) -> None:
    fleet = fleet_of(table, 1, ROUTERS["elastic"](table, 0, 1))
    orders = [picture(request_id, table, arrived_s=0.01 * request_id, target_s=5.0) for request_id in range(6)]
    assert [fleet.submit(order, order[0].arrived_s) for order in orders[:2]] == [None, None]
    first, second = fleet.replicas[0], replica("new", table)
    fleet.add(second, orders[2][0].arrived_s)
    fleet.drain(first)
    assert [fleet.submit(order, order[0].arrived_s) for order in orders[2:]] == [None] * 4
    assert (first.num_here, second.num_here) == (2, 4)
    fleet.advance_to(float("inf"))
    assert all(fleet.fate(order[0], None).is_on_time for order in orders)


@pytest.mark.parametrize("name", list(ROUTERS))
def test_whatever_is_taken_is_on_time_on_devices_that_do_as_told(table: CostTable, name: str) -> None:
    setting = Setting(table=table, num_steps=8, weak_cap=1)
    orders = [
        picture(request_id, table, arrived_s=0.01 * request_id, target_s=(1 + request_id % 3) * setting.solo_s)
        for request_id in range(120)
    ]
    run = simulate_fleet(fleet_of(table, 3, ROUTERS[name](table, 1, 1)), orders)
    assert all(fate.is_on_time == (fate.refusal is None) for fate in run.fates)
    assert 0 < sum(fate.is_on_time for fate in run.fates) < len(orders)


def test_pooled_devices_run_more_pictures_in_the_same_time(table: CostTable) -> None:
    four = pooled(table, 4)
    setting, pool = Setting(table=table, num_steps=8, weak_cap=1), Setting(table=four, num_steps=8, weak_cap=1)
    assert pool.solo_s == setting.solo_s
    assert pool.saturated_rate_per_s == pytest.approx(4 * setting.saturated_rate_per_s)
    assert [pool.step_s(2, 4 * batch) for batch in (1, 2, 8)] == [setting.step_s(2, batch) for batch in (1, 2, 8)]


def test_a_fast_device_takes_an_nth_of_the_time(table: CostTable) -> None:
    setting, quick = (Setting(table=costs, num_steps=8, weak_cap=1) for costs in (table, fast(table, 4)))
    assert quick.step_s(2, 8) == pytest.approx(setting.step_s(2, 8) / 4)
    assert quick.saturated_rate_per_s == pytest.approx(4 * setting.saturated_rate_per_s)


def test_a_row_for_every_router_at_every_load_under_every_curve(cost: Path) -> None:
    report, table = run_fleet_comparison(options(cost), QUIET)
    rows = report["rows"]
    assert isinstance(rows, list)
    assert [row["router"] for row in rows] == 4 * list(ALL_ROUTERS)
    for row in rows:
        assert 0 < row["effective_quality"] <= row["attainment"] <= row["accepted_attainment"] <= 1
        assert row["asked"] >= 1
    assert table.row_count == len(rows) + 4


def test_a_lead_is_the_difference_of_two_routers_on_the_same_arrivals(cost: Path) -> None:
    told, _ = run_fleet_comparison(options(cost, routers=("elastic", "random")), QUIET)
    rows = told["rows"]
    assert isinstance(rows, list)
    for first, second in zip(rows[::2], rows[1::2], strict=True):
        assert first["lead"] is None
        assert second["lead"] == pytest.approx(first["effective_quality"] - second["effective_quality"])
        assert 0 <= second["lead_ci"] <= first["effective_quality_ci"] + second["effective_quality_ci"] + 1e-9


def test_an_unknown_router_is_named_with_those_that_are_known(cost: Path) -> None:
    with pytest.raises(InvalidInput, match="least-queue, two-choices, pooled, fast"):
        run_fleet_comparison(options(cost, routers=("nearest",)), QUIET)
