"""Several levels in one launch: what that costs, who comes along, and what pins do to everybody then."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from random import Random
from statistics import fmean

import pytest

from elit_serve.bench.simulate.arrivals import Gamma
from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.bench.simulate.simulation import simulate
from elit_serve.bench.simulate.workload import Mix, Setting, draw_workload, mixed
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, QualityTable, RequestScheduler
from elit_serve.scheduler.mixing import Mixing
from elit_serve.scheduler.quality import logarithmic
from elit_serve.scheduler.replay import as_text, from_text
from elit_serve.scheduler.requests import Demand, Launch

LEVELS = (4, 8, 16)
SHAPE = "32x32"
NUM_STEPS = 10


def table_of(*, launch_ms: float, latent_ms: float, dearer: float | None) -> CostTable:
    """A launch takes so much, and so much for each latent of each image; mixed so many times what its highest level
    does."""
    steps_ms = {
        (StepKind(SHAPE, level), batch): launch_ms + batch * level * latent_ms
        for level in LEVELS
        for batch in (1, 2, 4, 8)
    }
    if dearer is not None:
        steps_ms |= {
            (kind._replace(is_mixed=True), batch): dearer * step_ms
            for (kind, batch), step_ms in steps_ms.items()
            if kind.level > 4 and batch > 1
        }
    return CostTable(steps_ms=steps_ms, overhead_ms=1.0)


SMALL = table_of(launch_ms=2.0, latent_ms=0.005, dearer=1.05)  # a small model: a launch costs more than its images
LARGE = table_of(launch_ms=0.1, latent_ms=0.5, dearer=1.05)
UNMIXED = table_of(launch_ms=2.0, latent_ms=0.005, dearer=None)


def image(request_id: int, pinned: int | None = None, *, within_s: float = 1.0, steps: int = NUM_STEPS) -> Demand:
    """Free unless it is pinned."""
    return Demand(
        request_id=request_id,
        shape=SHAPE,
        arrived_s=0.0,
        deadline_s=within_s,
        weak_caps=(None,) * steps,
        min_level=4,
        max_level=16,
        pinned=None if pinned is None else (pinned,) * steps,
    )


def scheduler_of(table: CostTable) -> RequestScheduler:
    quality = QualityTable(levels=logarithmic(LEVELS, lowest=0.5))
    return RequestScheduler(table, ElasticPolicy(quality, ElasticSettings(margin=0.0)))


def first_launch(table: CostTable, *demands: Demand) -> Launch:
    scheduler = scheduler_of(table)
    for demand in demands:
        assert scheduler.submit([demand], 0.0) is None
    launch = scheduler.decide(0.0)
    assert launch is not None
    return launch


def test_pins_share_a_launch_at_levels_of_their_own_and_the_table_says_what_it_takes() -> None:
    scheduler = scheduler_of(SMALL)
    scheduler.submit([image(1, pinned=4), image(2, pinned=16)], 0.0)
    launch = scheduler.decide(0.0)
    assert launch is not None
    assert launch.kind == StepKind(SHAPE, 16, is_mixed=True)
    assert dict(zip(launch.request_ids, launch.levels, strict=True)) == {1: 4, 2: 16}
    assert launch.predicted_ms == pytest.approx(1.05 * (2.0 + 2 * 16 * 0.005))
    assert [scheduler.progress_of(request_id).levels for request_id in (1, 2)] == [[4], [16]]
    scheduler.finished(launch.launch_id, 0.003, launch.predicted_ms)
    assert scheduler.correction(0.003) == 1.0, "it took what the mixed row says"


def test_free_ones_go_as_high_as_the_launch_that_they_are_in() -> None:
    launch = first_launch(SMALL, image(1, pinned=8), image(2), image(3, pinned=16))
    assert (launch.kind.level, launch.levels) == (16, (8, 16, 16))


def test_whoever_may_run_at_the_level_of_a_pin_makes_no_mix() -> None:
    launch = first_launch(SMALL, image(1, pinned=16), image(2))
    assert (launch.kind, launch.levels) == (StepKind(SHAPE, 16), (16, 16))


@pytest.mark.parametrize("table", [LARGE, UNMIXED], ids=["images cost more than launches", "nothing mixed is measured"])
def test_levels_run_apart_where_a_mix_does_not_pay(table: CostTable) -> None:
    launch = first_launch(table, image(1, pinned=4), image(2, pinned=16), image(3, pinned=4))
    assert (launch.kind, launch.request_ids, launch.levels) == (StepKind(SHAPE, 4), (1, 3), (4, 4))


def test_a_level_that_was_not_measured_is_in_no_mix() -> None:
    launch = first_launch(SMALL, image(1, pinned=5), image(2, pinned=16), image(3, pinned=5))
    assert (launch.kind, launch.request_ids) == (StepKind(SHAPE, 5), (1, 3))


def test_a_state_with_mixes_in_it_is_written_and_read() -> None:
    scheduler = scheduler_of(SMALL)
    scheduler.submit([image(1, pinned=4), image(2, pinned=16)], 0.0)
    scheduler.decide(0.0)
    assert from_text(as_text(scheduler)).decide(0.003) == scheduler.decide(0.003)


def test_a_promise_is_given_that_only_mixed_launches_can_keep() -> None:
    pins = [image(request_id, pinned=level, within_s=0.03) for request_id, level in enumerate((4, 8, 16))]
    for table, taken in ((SMALL, [True, True, True]), (UNMIXED, [True, False, False])):
        scheduler = scheduler_of(table)
        assert [scheduler.submit([pin], 0.0) is None for pin in pins] == taken


def test_a_mixed_step_is_never_cheaper_than_another_of_its_level_and_a_batch_of_one_is_no_mix() -> None:
    steps_ms = SMALL.steps_ms | {(StepKind(SHAPE, 16, is_mixed=True), 4): 0.1}
    mixed = StepKind(SHAPE, 16, is_mixed=True)
    row, unmixed = (replace(SMALL, steps_ms=steps_ms).row(kind) for kind in (mixed, mixed.unmixed))
    assert row[1] == unmixed[1]
    assert row[2] == pytest.approx(1.05 * unmixed[2])
    assert row[4] >= row[3] >= row[2]
    assert all(many >= few for many, few in zip(row, unmixed, strict=True))


def test_levels_are_mixed_only_where_every_one_above_the_lowest_is_measured() -> None:
    assert SMALL.mixed_levels(SHAPE, None) == LEVELS
    assert SMALL.mixed_levels(SHAPE, 4) == ()
    some = {key: step_ms for key, step_ms in SMALL.steps_ms.items() if key[0] != StepKind(SHAPE, 8, is_mixed=True)}
    assert replace(SMALL, steps_ms=some).mixed_levels(SHAPE, None) == ()


def every_cut(levels: list[int], rows: dict[int, list[float]], mixed: dict[int, list[float]]) -> float:
    """The least that members at these levels take, lowest first: all cuts between neighbouring levels are tried."""
    distinct, least = sorted(set(levels)), float("inf")
    for number in range(len(distinct)):
        for cuts in combinations(distinct[1:], number):
            seconds = 0.0
            for low, high in zip((0, *cuts), (*cuts, 99), strict=True):
                group = [level for level in levels if low <= level < high]
                seconds += (rows if len(set(group)) == 1 else mixed)[max(group)][len(group)]
            least = min(least, seconds)
    return least


@pytest.mark.parametrize("seed", range(100))
def test_a_crowd_is_cut_into_the_launches_that_take_the_least_and_fewer_never_take_more(seed: int) -> None:
    random, ladder = Random(seed), (1, 2, 4, 8, 16)
    fixed_s, grows = random.uniform(0, 10), random.uniform(0, 1)
    rows = {level: [fixed_s * (n > 0) + n * (1 + grows * level) for n in range(13)] for level in ladder}
    dearer = {level: random.uniform(1.0, 1.2) for level in ladder}
    mixed = {level: [dearer[16] * step_s for step_s in rows[level]] for level in ladder}
    mixing = Mixing(ladder, list(rows.values()), list(mixed.values()))
    crowd = [random.choice(ladder) for _ in range(random.randint(1, 12))]
    key = sum(map(mixing.unit, crowd))
    assert mixing.seconds(key) == pytest.approx(every_cut(crowd, rows, mixed))
    groups = {mixing.group_of(level, key) for level in crowd}
    assert sum(mixing.seconds(sum(mixing.unit(at) for at in crowd if low <= at <= high)) for low, high in groups) == (
        pytest.approx(mixing.seconds(key))
    )
    noisy = [[step_s * random.uniform(0.5, 2.0) for step_s in row] for row in (*rows.values(), *mixed.values())]
    noisy = [[max(row[: n + 1]) for n in range(13)] for row in noisy]
    mixing = Mixing(ladder, noisy[:5], noisy[5:])
    for gone in crowd:
        assert mixing.seconds(key - mixing.unit(gone)) <= mixing.seconds(key) + 1e-9


def test_a_third_of_exact_pins_no_longer_breaks_a_small_model() -> None:
    """In bursts, at 0.7 of what the device can take: the share that is on time."""

    def on_time(table: CostTable, pins: float) -> float:
        setting = Setting(table=table, num_steps=NUM_STEPS, weak_cap=None)
        shares = []
        for seed in range(2):
            demands = draw_workload(setting, Gamma(cv=2), load=0.7, slo_scales=(2, 3), count=300, seed=seed)
            orders = mixed(demands, Mix(pins=pins), setting, seed)
            run = simulate(scheduler_of(table), orders, SimulatedDevice(table))
            shares.append(fmean(fate.is_on_time for fate in run.fates))
        return fmean(shares)

    free, apart, together = on_time(UNMIXED, 0.0), on_time(UNMIXED, 0.3), on_time(SMALL, 0.3)
    assert free > 0.95
    assert together > free - 0.05
    assert apart < free - 0.2
