"""Any traffic on a device that behaves as predicted: nothing lost, nothing run twice, no promise broken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, product
from math import inf

from hypothesis import given, settings
from hypothesis import strategies as st

from elit_serve.bench.simulate.device import SimulatedDevice
from elit_serve.plans.coarsening import Coarsening
from elit_serve.plans.grid import time_grid
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, FixedPolicy, QualityTable, RequestScheduler
from elit_serve.scheduler.costs import AnswerCost
from elit_serve.scheduler.drive import Driver
from elit_serve.scheduler.quality import logarithmic
from elit_serve.scheduler.requests import Demand, Launch, Priority
from elit_serve.scheduler.state import State

LEVELS = (2, 4, 8, 16)
SHAPES = ("32x32", "64x64")


@dataclass
class Traffic:
    """What happens from outside: images that are asked for together, and cancellations, by time."""

    submissions: list[tuple[float, list[Demand]]]
    cancellations: list[tuple[float, int]] = field(default_factory=list)
    failing_launches: frozenset[int] = frozenset()


class Failing(Driver):
    """A driver some of whose launches fail, by their ids."""

    failing: frozenset[int] = frozenset()

    def ran(self, launch: Launch) -> None:
        if launch.launch_id in self.failing:
            self.fail(launch.request_ids)


def drive(
    scheduler: RequestScheduler, truth: CostTable, traffic: Traffic, *, depth: int = 1
) -> tuple[Driver, dict[int, Demand]]:
    """Lets the traffic meet a device that takes `truth` for every step. Also what was accepted, by id."""
    driver, accepted = Failing(scheduler, SimulatedDevice(truth), depth=depth), {}
    driver.failing = traffic.failing_launches
    outside = [(at_s, 0, index, demands) for index, (at_s, demands) in enumerate(traffic.submissions)]
    outside += [(at_s, 1, index, [request_id]) for index, (at_s, request_id) in enumerate(traffic.cancellations)]
    for at_s, is_cancellation, _, what in sorted(outside, key=lambda event: event[:3]):
        driver.advance_to(at_s)
        if is_cancellation:
            driver.cancel(what[0])
        elif driver.submit(what) is None:
            accepted |= {demand.request_id: demand for demand in what}
    driver.advance_to(inf)
    return driver, accepted


@st.composite
def tables(draw: st.DrawFn) -> CostTable:
    """Costs with bends anywhere, that rise with the level, the weak level and the batch, or else do not even that."""
    batches = (1, 2, 3, 4, 8)
    grows = st.floats(0.0, 2.0)
    per_level = [0.5 + draw(grows) for _ in LEVELS]
    per_batch = [0.2 + draw(grows) for _ in batches]
    main = [sum(per_level[: i + 1]) for i in range(len(LEVELS))]
    size = [1 + sum(per_batch[1 : i + 1]) for i in range(len(batches))]
    fixed_ms, weak_share = draw(st.floats(0.1, 5.0)), draw(st.floats(0.0, 1.0))
    skips, steps_ms = draw(st.booleans()), dict[tuple[StepKind, int], float]()
    for (i, level), (b, batch), shape in product(enumerate(LEVELS), enumerate(batches), SHAPES):
        image_ms = size[b] * (1 + SHAPES.index(shape))
        steps_ms[StepKind(shape, level), batch] = fixed_ms + main[i] * image_ms
        for j, weak in enumerate(LEVELS[: i + 1]):
            steps_ms[StepKind(shape, level, weak), batch] = fixed_ms + (main[i] + weak_share * main[j]) * image_ms
        if i == 0 and skips:
            steps_ms[StepKind(shape, 1, None, is_skipped=True), batch] = fixed_ms + image_ms / 2
            steps_ms[StepKind(shape, 1, 1, is_skipped=True), batch] = fixed_ms + image_ms
    if draw(st.booleans()):
        dearer = draw(st.floats(1.0, 1.5))
        steps_ms |= {
            (kind._replace(is_mixed=True), batch): dearer * step_ms
            for (kind, batch), step_ms in steps_ms.items()
            if not kind.is_skipped and kind.level > LEVELS[0] and kind.weak_level in {None, 2, 8} and batch > 1
        }
    if draw(st.booleans()):  # measured with noise: neither a larger batch nor a higher level need cost more
        random = draw(st.randoms(use_true_random=False))
        steps_ms = {key: cost * random.uniform(0.5, 2.0) for key, cost in steps_ms.items()}
    return CostTable(
        steps_ms=steps_ms,
        overhead_ms=draw(st.floats(0.0, 10.0)),
        answers_ms=draw(st.one_of(st.just({}), answers(batches))),
        pads_batches=draw(st.booleans()),
    )


@st.composite
def answers(draw: st.DrawFn, batches: Sequence[int]) -> dict[tuple[str, int], AnswerCost]:
    """Decoding that costs as much as steps do, and now and then less for more pictures."""
    costs = st.builds(AnswerCost, st.floats(0.1, 20.0), st.floats(0.0, 20.0))
    return {(shape, batch): draw(costs) for shape in SHAPES for batch in batches}


@st.composite
def coarsenings(draw: st.DrawFn, num_steps: int) -> Coarsening | None:
    """Steps that may become longer, for nothing or for much, or may not."""
    longest = draw(st.sampled_from([1, 2, 2, 3, 4]))
    if longest == 1:
        return None
    rises = draw(st.lists(st.sampled_from([0.0, 0.01, 0.1]), min_size=longest - 1, max_size=longest - 1))
    losses = {level: (0.0, 0.0, *accumulate(rises)) for level in draw(st.sampled_from([(2,), (2, 16)]))}
    return Coarsening.of(time_grid(num_steps), losses, {2: draw(st.sampled_from([0.0, 0.5]))})


@st.composite
def demands(draw: st.DrawFn, request_id: int, arrived_s: float) -> Demand:
    num_steps = draw(st.integers(1, 8))
    guided_from = draw(st.sampled_from([0, 0, 0, num_steps, num_steps // 2]))
    cap = draw(st.sampled_from([2, 2, 16]))
    low, high = sorted((draw(st.integers(1, 18)), draw(st.integers(1, 18))))
    bounds = draw(st.sampled_from([(2, 16), (2, 16), (low, high)]))
    pins = st.one_of(st.none(), st.none(), st.integers(1, 18).map(lambda level: (level,) * num_steps))
    skips = st.one_of(st.just([]), st.just([]), st.lists(st.integers(1, max(1, num_steps - 1)), unique=True))
    replays = st.lists(st.sampled_from(LEVELS), min_size=num_steps, max_size=num_steps).map(tuple)
    pinned = draw(st.one_of(pins, pins, replays))
    skipped = tuple(sorted(draw(skips))) if num_steps > 1 else ()
    return Demand(
        shape=draw(st.sampled_from([SHAPES[0], *SHAPES])),
        request_id=request_id,
        arrived_s=arrived_s,
        deadline_s=arrived_s + draw(st.floats(0.01, 1.5)),
        weak_caps=(None,) * guided_from + (cap,) * (num_steps - guided_from),
        min_level=bounds[0],
        max_level=bounds[1],
        ceilings=draw(st.sampled_from([None, None, tuple(max(bounds[0], 4 * step) for step in range(num_steps))])),
        pinned=pinned,
        skipped=skipped,
        coarsening=None if pinned or skipped else draw(coarsenings(num_steps)),
        is_hard=draw(st.sampled_from([True, True, False])),
        priority=draw(st.sampled_from([Priority.INTERACTIVE, Priority.INTERACTIVE, Priority.BATCH])),
        prepare_s=draw(st.sampled_from([0.0, 0.0, 0.002, 0.05])),
    )


@st.composite
def traffics(draw: st.DrawFn, *, fails: bool = False) -> Traffic:
    now_s, submissions, cancellations, num_requests = 0.0, [], [], 0
    for _ in range(draw(st.integers(1, 25))):
        now_s += draw(st.sampled_from([0.0, 0.002, 0.01, 0.03, 0.2]))
        together = range(num_requests, num_requests + draw(st.sampled_from([1, 1, 1, 3])))
        submissions.append((now_s, [draw(demands(request_id, now_s)) for request_id in together]))
        cancellations += [(now_s + draw(st.floats(0, 0.3)), i) for i in together if draw(st.integers(0, 7)) == 0]
        num_requests = together[-1] + 1
    failing = draw(st.frozensets(st.integers(0, 40), max_size=3)) if fails else frozenset()
    return Traffic(submissions, cancellations, failing)


def elastic(
    table: CostTable, elastic_settings: ElasticSettings | None = None, *, lowest: float = 0.5
) -> RequestScheduler:
    """lowest: quality at the lowest level, which says who is worth it."""
    quality = QualityTable(levels=logarithmic(LEVELS, lowest=lowest))
    return RequestScheduler(table, ElasticPolicy(quality, elastic_settings))


def assert_all_accounted_for(driver: Driver, accepted: dict[int, Demand]) -> None:
    assert driver.endings.keys() == accepted.keys(), "every accepted request ends"
    assert driver.scheduler.num_waiting == driver.scheduler.num_running == 0
    for request_id, demand in accepted.items():
        levels, strides = driver.endings[request_id].levels, driver.endings[request_id].strides
        assert all(1 <= stride <= demand.max_stride for stride in strides)
        if driver.endings[request_id].state is State.DONE:
            assert sum(strides) == demand.num_steps, "every step of the grid is covered once"
        for step in demand.skipped:
            assert levels[step : step + 1] == levels[step - 1 : step][: len(levels) - step], (
                "it has no level of its own"
            )
        starts = accumulate(strides[:-1], initial=0) if strides else ()
        own = [(level, at) for level, at in zip(levels, starts, strict=True) if at not in demand.skipped]
        if demand.pinned is not None:
            assert all(level == demand.pinned[at] for level, at in own)
        else:
            ceilings = demand.ceilings or (demand.max_level,) * demand.num_steps
            assert all(demand.min_level <= level <= min(demand.max_level, ceilings[at]) for level, at in own)
    assert_launches_are_of_one_kind(driver, accepted)


def assert_launches_are_of_one_kind(driver: Driver, accepted: dict[int, Demand]) -> None:
    step = dict.fromkeys(accepted, 0)
    for launch, *_ in driver.launches:
        assert (len(set(launch.levels)) > 1) == launch.kind.is_mixed
        assert max(launch.levels) == launch.kind.level
        for request_id, stride in zip(launch.request_ids, launch.strides, strict=True):
            demand = accepted[request_id]
            caps = [demand.weak_caps[step[request_id]], *demand.weak_caps]
            skips = step[request_id] in demand.skipped
            kind = launch.kind.unmixed
            own, *others = [StepKind.capped(demand.shape, kind.level, cap, skips) for cap in caps]
            rides = own.weak_level is None and kind in others
            assert own == kind or rides, "a step runs in a launch of its kind; unguided ones may ride"
            step[request_id] += stride


@settings(max_examples=300, deadline=None)
@given(
    table=tables(),
    traffic=traffics(),
    depth=st.integers(1, 2),
    max_batch=st.sampled_from([8, 8, 3, 1]),
    lowest=st.sampled_from([0.1, 0.5, 1.0]),
    max_waiting=st.sampled_from([None, None, 4]),
)
def test_every_promise_is_kept(table, traffic, depth, max_batch, lowest, max_waiting) -> None:  # type: ignore[no-untyped-def]
    scheduler = elastic(table, ElasticSettings(max_waiting=max_waiting, margin=1e-3), lowest=lowest)
    scheduler.limit_batch(max_batch)
    driver, accepted = drive(scheduler, table, traffic, depth=depth)
    assert_all_accounted_for(driver, accepted)
    assert scheduler.counters.decision_errors == 0
    for request_id, demand in accepted.items():
        ending = driver.endings[request_id]
        if ending.state is State.CANCELLED:
            continue
        assert ending.state is State.DONE
        if demand.is_hard:
            assert ending.at_s <= demand.deadline_s
    assert scheduler.counters.missed == 0


@settings(max_examples=100, deadline=None)
@given(table=tables(), traffic=traffics(fails=True), depth=st.integers(1, 2), bias=st.sampled_from([0.5, 1.0, 2.0]))
def test_all_are_accounted_for_when_steps_fail_and_predictions_are_wrong(table, traffic, depth, bias) -> None:  # type: ignore[no-untyped-def]
    for scheduler in (elastic(table), RequestScheduler(table, FixedPolicy(max_waiting=5))):
        driver, accepted = drive(scheduler, table.scaled(bias), traffic, depth=depth)
        assert_all_accounted_for(driver, accepted)
        assert scheduler.counters.decision_errors == 0
