"""A worker whose policy mixes levels in each launch: everybody gets, is told and pays for his own."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from elit_serve.clock import MonotonicClock
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.observer import Observer
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, StepRun
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.nn.flops import step_flops
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, RequestScheduler
from elit_serve.scheduler.policy.fixed import FixedPolicy
from elit_serve.scheduler.policy.view import Choice, View
from elit_serve.scheduler.requests import Launch, Priority

CLOCK = MonotonicClock()
COST = CostTable(
    steps_ms={
        (StepKind("32x32", level, weak, is_mixed=is_mixed), batch): 10.0 * level
        for level in (1, 2, 3, 4)
        for weak in (None, 1)
        for is_mixed in (False, True)
        for batch in (1, 4)
    },
    overhead_ms=1000.0,
)


class Together(FixedPolicy):
    """Everybody takes his next step in one launch, which is mixed where levels differ."""

    def choose(self, view: View) -> Choice | None:  # noqa: ARG002
        if not (members := self._queue):
            return None
        levels = [member.next_kind.level for member in members]
        highest = max((member.next_kind for member in members), key=lambda kind: kind.level)
        kind = highest._replace(is_mixed=len(set(levels)) > 1)
        for member in members:
            member.step += 1
        self._queue = [member for member in members if member.step < len(member.kinds)]
        return Choice([member.demand.request_id for member in members], kind, levels, [1] * len(members))


class Recorder(Observer):
    def __init__(self) -> None:
        self.launches: list[Launch] = []

    def step_finished(self, launch: Launch, observed_ms: float | None, gap_ms: float | None) -> None:  # noqa: ARG002
        assert observed_ms is not None
        self.launches.append(launch)


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def worker(pipeline: Pipeline, recorder: Recorder) -> Iterator[Worker]:
    """Not started yet."""
    scheduler = RequestScheduler(COST, Together())
    made = Worker(pipeline, Executor(pipeline, num_slots=4), scheduler, clock=CLOCK, observer=recorder)
    yield made
    made.stop()


def order(pipeline: Pipeline, seed: int, levels: tuple[int, ...]) -> Order:
    plan = pipeline.plan(levels=levels)
    return Order(
        condition=pipeline.conditions[2],
        shape="32x32",
        seeds=(seed,),
        guidance=plan.guidance,
        time_shift=plan.time_shift,
        weak_caps=plan.weak_caps(4),
        arrived_s=CLOCK.now(),
        latency_ms=60_000,
        is_hard=False,
        min_level=1,
        max_level=4,
        pinned=levels,
        strides=(1,) * len(levels),
        priority=Priority.INTERACTIVE,
        output_format="png",
    )


def assert_made_as_alone(outcome: Outcome, pipeline: Pipeline) -> None:
    (picture,) = outcome.pictures
    alone = pipeline.run([outcome.order.condition], [picture.seed], pipeline.plan(levels=picture.levels))[0].image
    apart = ImageChops.difference(Image.open(io.BytesIO(picture.file)), alone)
    assert max(high for _, high in apart.getextrema()) <= 1  # of 255


def test_who_shares_a_mixed_launch_gets_his_own_levels_and_pays_for_these(
    worker: Worker, recorder: Recorder, pipeline: Pipeline
) -> None:
    pinned = [(1, 1, 2), (4, 2, 2), (3, 3, 3, 3)]
    told: list[StepRun] = []
    futures = [worker.submit(order(pipeline, seed, levels), on_step=told.append) for seed, levels in enumerate(pinned)]
    worker.start()
    outcomes = [future.result(60) for future in futures]
    launches = [(launch.kind.level, launch.kind.is_mixed, launch.levels) for launch in recorder.launches]
    assert launches == [(4, True, (1, 4, 3)), (3, True, (1, 2, 3)), (3, True, (2, 2, 3)), (3, False, (3,))]
    for seed, (levels, outcome) in enumerate(zip(pinned, outcomes, strict=True)):
        (picture,) = outcome.pictures
        assert tuple(picture.levels) == levels
        assert tuple(step.level for step in told if step.seed == seed) == levels
        own = [step_flops(pipeline.spec, StepKind("32x32", level, 1)) for level in levels]
        assert picture.cost.flops == pytest.approx(sum(own))
        assert_made_as_alone(outcome, pipeline)
