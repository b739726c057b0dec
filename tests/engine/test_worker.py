from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from elit_serve.clock import MonotonicClock, VirtualClock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.predict import Predictor
from elit_serve.engine.worker import Job, Worker, plan_at_start
from elit_serve.errors import EngineStopped, GenerationFailed, Overloaded
from elit_serve.scheduler import CostTable

# 4 steps cost 100 ms at level 1, 200 at 2, 300 at 3 and 400 at 4
COSTS = {(level, weak): 25.0 * level for level in (1, 2, 3, 4) for weak in (None, 1, level)}
PREDICTOR = Predictor(cost=CostTable(step_costs_ms=COSTS, overhead_ms=0.0))


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture
def idle(pipeline: Pipeline) -> Worker:
    """A worker that is not started yet."""
    return Worker(pipeline, PREDICTOR, clock=MonotonicClock(), max_queue=4)


@pytest.fixture
def worker(idle: Worker) -> Iterator[Worker]:
    idle.start()
    yield idle
    idle.stop()


def job(pipeline: Pipeline, *, class_id: int = 2, steps: int = 2, arrived_s: float = 0.0) -> Job:
    return Job(class_ids=(class_id,), seeds=(7,), plan=pipeline.plan(steps=steps), arrived_s=arrived_s)


def targeted(pipeline: Pipeline, latency_ms: float, arrived_s: float = 0.0) -> Job:
    return Job(
        class_ids=(2,),
        seeds=(7,),
        plan=pipeline.plan(),
        arrived_s=arrived_s,
        latency_ms=latency_ms,
        candidates=(1, 2, 3, 4),
    )


def test_a_job_comes_back_with_its_pictures_and_times(worker: Worker, pipeline: Pipeline) -> None:
    outcome = worker.submit(job(pipeline)).result()
    expected = pipeline.run([2], [7], pipeline.plan(steps=2))
    assert [picture.encode() for picture in outcome.pictures] == [picture.encode() for picture in expected]
    assert outcome.plan == pipeline.plan(steps=2)
    assert outcome.compute_ms > 0


@pytest.mark.parametrize(("waited_ms", "level"), [(0, 3), (60, 2), (200, 1), (300, 1), (5000, 1)])
def test_the_time_spent_waiting_is_gone_from_the_target(pipeline: Pipeline, waited_ms: int, level: int) -> None:
    clock = VirtualClock(10.0)
    asked = targeted(pipeline, latency_ms=350, arrived_s=clock.now())
    clock.advance(waited_ms / 1000)
    plan = plan_at_start(asked, clock.now(), PREDICTOR)
    assert plan.levels == (level,) * 4


def test_a_pinned_plan_is_run_as_it_is_however_late(pipeline: Pipeline) -> None:
    pinned = Job(class_ids=(0,), seeds=(0,), plan=pipeline.plan(budget=1.0), arrived_s=0.0, latency_ms=10)
    assert plan_at_start(pinned, 99.0, PREDICTOR) == pipeline.plan(budget=1.0)


def test_a_failing_job_fails_alone(idle: Worker, pipeline: Pipeline) -> None:
    before, broken, after = (idle.submit(job(pipeline, class_id=class_id)) for class_id in (1, 10**6, 1))
    idle.start()
    assert before.result().pictures[0].encode() == after.result().pictures[0].encode()
    with pytest.raises(GenerationFailed, match="IndexError"):
        broken.result()
    assert idle.is_alive
    idle.stop()


def test_a_job_cancelled_while_it_waits_never_runs(pipeline: Pipeline) -> None:
    idle = Worker(pipeline, PREDICTOR, clock=MonotonicClock(), max_queue=4)
    first, unwanted, last = (idle.submit(job(pipeline)) for _ in range(3))
    assert unwanted.cancel()
    assert idle.queue_length == 2
    idle.start()
    assert first.result().pictures
    assert last.result().pictures
    assert unwanted.cancelled()
    idle.stop()


def test_an_abandoned_job_ends_early_and_lets_the_next_one_run(idle: Worker, pipeline: Pipeline) -> None:
    long, queued, last = (idle.submit(job(pipeline, steps=steps)) for steps in (1000, 1000, 2))
    idle.start()
    while not long.running():
        assert not long.done()
    idle.abandon(long)
    idle.abandon(queued)
    with pytest.raises(GenerationFailed, match="caller left"):
        long.result()
    assert queued.cancelled()
    assert last.result().pictures
    idle.stop()


def test_a_full_queue_refuses_and_says_when_to_retry(idle: Worker, pipeline: Pipeline) -> None:
    waiting = [idle.submit(targeted(pipeline, latency_ms=10_000)) for _ in range(4)]
    with pytest.raises(Overloaded) as refusal:
        idle.submit(job(pipeline))
    assert refusal.value.retry_after_s == 2  # four jobs of 400 ms
    waiting[0].cancel()
    assert not idle.submit(job(pipeline)).done()  # a cancelled job gives its place back


def test_stopping_can_finish_what_is_queued(idle: Worker, pipeline: Pipeline) -> None:
    queued = [idle.submit(job(pipeline)) for _ in range(3)]
    idle.start()
    idle.stop(finish_queued=True)
    assert all(future.result().pictures for future in queued)
    assert not idle.is_alive


def test_stopping_refuses_what_is_queued(idle: Worker, pipeline: Pipeline) -> None:
    queued = [idle.submit(job(pipeline)) for _ in range(3)]
    idle.stop()
    for future in queued:
        with pytest.raises(EngineStopped):
            future.result()


def test_a_stopped_worker_takes_nothing(worker: Worker, pipeline: Pipeline) -> None:
    worker.stop()
    with pytest.raises(EngineStopped):
        worker.submit(job(pipeline))
