"""Mixes of requests: who is of another kind, whether orders of several pictures stay whole, and what the bound is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import pytest

from elit_serve.bench.comparison.side_by_side import Comparison
from elit_serve.bench.simulate.arrivals import Gamma
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import simulate
from elit_serve.bench.simulate.workload import Mix, Setting, draw_workload, mixed
from elit_serve.errors import InvalidInput
from elit_serve.plans.coarsening import Coarsening, losses_between
from elit_serve.plans.grid import time_grid
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.requests import Demand, Priority

STEPS = 8
LEVELS = (1, 2, 4)
SHAPES = {"32x32": 1.0, "16x16": 0.5, "64x64": 4.0}  # what a picture costs, as a share of one of the first
QUALITY = QualityTable(levels={1: 0.7, 2: 0.85, 4: 1.0})


def table_of(*shapes: str) -> CostTable:
    """A launch takes 1 ms, and for each picture of the first shape 1 + level ms, and 0.5 if guided."""
    steps_ms = {
        (StepKind(shape, level, weak), batch): 1.0 + SHAPES[shape] * batch * (1 + level + (0.5 if weak else 0.0))
        for shape in shapes
        for level in LEVELS
        for weak in (None, 1)
        for batch in (1, 2, 4, 8)
    }
    return CostTable(steps_ms=steps_ms, overhead_ms=2.0)


SETTING = Setting(table=table_of(*SHAPES), num_steps=STEPS, weak_cap=1)
EVERYTHING = Mix(pins=0.2, unguided=0.2, batch_class=0.2, other_sizes=0.4, images=(1, 2, 4))


def drawn(mix: Mix, *, count: int = 600) -> tuple[tuple[Demand, ...], ...]:
    plain = draw_workload(SETTING, Gamma(cv=1), load=1, slo_scales=(2.0, 3.0), count=count, seed=1)
    return mixed(plain, mix, SETTING, seed=1)


def ones(mix: Mix) -> list[Demand]:
    """Of requests for one picture each."""
    return [demand for (demand,) in drawn(mix)]


def comparison(mix: Mix, *policies: str, load: float = 1.0) -> Comparison:
    return Comparison(
        setting=SETTING,
        source=Gamma(cv=2),
        curves={"stated": QUALITY},
        loads=(load,),
        policies=policies,
        slo_scales=(1.5, 3.0, 10.0),
        requests=80,
        seeds=3,
        noise=0.0,
        bias=0.0,
        coarsening=Coarsening.of(time_grid(STEPS), {4: losses_between({2: 0.01}, 2)}),
        mix=mix,
    )


def test_a_larger_share_pins_the_same_requests_and_more() -> None:
    few, many = ones(Mix(pins=0.2)), ones(Mix(pins=0.6, unguided=0.5, batch_class=1.0))
    assert [demand.arrived_s for demand in few] == [demand.arrived_s for demand in many]
    assert sum(demand.pinned is not None for demand in few) == pytest.approx(120, abs=30)
    assert all(other.pinned == demand.pinned for demand, other in zip(few, many, strict=True) if demand.pinned)
    assert sum(demand.weak_caps == (None,) * STEPS for demand in many) == pytest.approx(300, abs=40)
    assert {demand.priority for demand in many} == {Priority.BATCH}


def test_other_sizes_are_drawn_evenly_and_a_larger_share_adds_to_them() -> None:
    few, many = ones(Mix(other_sizes=0.3)), ones(Mix(other_sizes=0.6, pins=0.5))
    counted = Counter(demand.shape for demand in few)
    assert counted["16x16"] == pytest.approx(90, abs=25)
    assert counted["64x64"] == pytest.approx(90, abs=25)
    assert all(demand.shape in ("32x32", other.shape) for demand, other in zip(few, many, strict=True))
    assert sum(demand.shape != "32x32" for demand in many) == pytest.approx(360, abs=40)
    assert [demand.pinned for demand in many] == [demand.pinned for demand in ones(Mix(pins=0.5))]


def test_a_target_is_the_same_multiple_of_what_the_size_takes_alone() -> None:
    plain, other = ones(Mix()), ones(Mix(other_sizes=1.0))
    alone_s = {  # eight steps at level 4, and the answer
        shape: (STEPS * (1 + share * 5.5) + 2) / 1000 for shape, share in SHAPES.items()
    }
    for before, after in zip(plain, other, strict=True):
        scale = (before.deadline_s - before.arrived_s) / alone_s["32x32"]
        assert scale in (pytest.approx(2.0), pytest.approx(3.0))
        assert after.deadline_s - after.arrived_s == pytest.approx(scale * alone_s[after.shape])
        assert replace(after, shape=before.shape, deadline_s=before.deadline_s) == before


def test_pictures_of_a_request_are_alike_and_numbered() -> None:
    orders = drawn(EVERYTHING)
    assert [picture.request_id for picture in chain.from_iterable(orders)] == list(range(sum(map(len, orders))))
    sizes = Counter(map(len, orders))
    assert sizes.keys() == {1, 2, 4}
    assert min(sizes.values()) > 160
    assert all(len({replace(picture, request_id=0) for picture in pictures}) == 1 for pictures in orders)
    assert [replace(first, request_id=0) for first, *_ in orders] == [
        replace(only, request_id=0) for only in ones(replace(EVERYTHING, images=(1,)))
    ]


def test_load_is_of_pictures() -> None:
    def pictures_per_s(*images: int) -> float:
        orders = replace(comparison(Mix(images=images)), requests=1000).orders(1.0, 0)
        return sum(map(len, orders)) / orders[-1][0].arrived_s

    assert pictures_per_s(3) == pytest.approx(pictures_per_s(1))
    assert pictures_per_s(1, 4) == pytest.approx(pictures_per_s(1), rel=0.05)


def test_an_order_is_taken_whole_or_not_at_all() -> None:
    """At level 1 a step takes 3.5 ms for one picture and 11 for four: 30 and 90 ms with the answer."""

    def taken(target_ms: float, numbers: Sequence[int]) -> list[bool]:
        (one,) = ones(Mix())[:1]
        one = replace(one, arrived_s=0.0, deadline_s=target_ms / 1000)
        pictures = tuple(replace(one, request_id=number) for number in numbers)
        scheduler = RequestScheduler(SETTING.table, ElasticPolicy(QUALITY))
        fates = simulate(scheduler, [pictures], SimulatedDevice(SETTING.table)).fates
        assert all(fate.is_on_time == (fate.refusal is None) for fate in fates)
        return [fate.is_on_time for fate in fates]

    assert taken(60, [0]) == [True]
    assert taken(60, [0, 1, 2, 3]) == [False] * 4
    assert taken(100, [0, 1, 2, 3]) == [True] * 4


@pytest.mark.parametrize("load", [0.4, 0.8, 1.6])
def test_promises_are_kept_in_a_mix_of_everything(load: float) -> None:
    elastic, strides, fixed = comparison(EVERYTHING, "elastic", "elastic-strides", "fixed", load=load).rows()
    for row in (elastic, strides):
        assert row.accepted_attainment.value == 1.0
        assert row.attainment.value > 0.1
    for row in (elastic, fixed):
        assert row.effective_quality.value <= row.bound.value
    assert elastic.effective_quality.value > fixed.effective_quality.value


def test_the_bound_of_a_mix_is_that_of_its_fastest_kind() -> None:
    """Pictures of half the size and without guidance are made at a rate at which no guided ones of the first are."""
    halves = replace(SETTING, table=table_of("32x32", "16x16"))
    alike = replace(comparison(Mix(), "elastic", load=2.0), setting=halves)
    (of_first,) = alike.rows()
    (of_mix,) = replace(alike, mix=Mix(other_sizes=1.0, unguided=1.0)).rows()
    assert of_first.bound.value < of_mix.effective_quality.value <= of_mix.bound.value


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"pins": 1.2}, "pins"),
        ({"batch_class": -0.1}, "batch-class"),
        ({"other_sizes": float("nan")}, "other-sizes"),
        ({"images": ()}, "images"),
        ({"images": (1, 0)}, "images"),
        ({"images": (10**6,)}, "images"),
    ],
)
def test_a_mix_that_makes_no_sense_is_named(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        Mix(**changes)  # type: ignore[arg-type]
    assert refused.value.field == field
