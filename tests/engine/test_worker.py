"""The worker around a real executor and scheduler: orders in, files out, and everybody is told what became of his."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from elit_serve.clock import Clock, MonotonicClock, VirtualClock
from elit_serve.engine.conditions import ClassCondition
from elit_serve.engine.executor.slots import Executor, RunningStep, Transfer
from elit_serve.engine.observer import Observer
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, Picture, Preview, StepRun
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.errors import DeadlineExceeded, EngineStopped, GenerationFailed, Infeasible, Overloaded
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable, ElasticPolicy, ElasticSettings, RequestScheduler
from elit_serve.scheduler.policy.view import Choice, View
from elit_serve.scheduler.quality import placeholder_quality
from elit_serve.scheduler.requests import Launch, Priority

CLOCK = MonotonicClock()
LEVELS = (1, 2, 3, 4)

# Far above what the tiny model takes, so that no promise is broken by a busy machine: 4 steps cost 0.4 s at level 1.
COST = CostTable(
    steps_ms={
        (StepKind("32x32", level, weak), batch): 100.0 * level * batch**0.5
        for level in LEVELS
        for weak in (None, 1, level)
        for batch in (1, 2, 4, 8)
    },
    overhead_ms=1000.0,
)


class StepByStep(Executor):
    """Runs a step only once the test lets it; keeps what was launched."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int = 16) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.launches: list[Sequence[Picture]] = []
        self.may_run = threading.Semaphore(0)
        self.has_started = threading.Semaphore(0)

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:  # the warm-up is not held
            self.has_started.release()
            assert self.may_run.acquire(timeout=60)
            self.launches.append(pictures)
        return super().launch(pictures, kind)


class Recorder(Observer):
    def __init__(self) -> None:
        self.steps: list[Launch] = []
        self.gaps_ms: list[float | None] = []
        self.failures: list[tuple[str, int]] = []

    def step_finished(self, launch: Launch, observed_ms: float | None, gap_ms: float | None) -> None:  # noqa: ARG002
        self.steps.append(launch)
        self.gaps_ms.append(gap_ms)

    def images_failed(self, cause: str, num_images: int) -> None:
        self.failures.append((cause, num_images))


StartWorker = Callable[..., Worker]


@pytest.fixture(scope="module")
def pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture
def make_worker(pipeline: Pipeline) -> Iterator[StartWorker]:
    """Workers around executors of one's own; not started yet."""
    made = []

    def make(
        executor: Executor | None = None,
        observer: Observer | None = None,
        max_waiting: int = 8,
        clock: Clock = CLOCK,
    ) -> Worker:
        policy = ElasticPolicy(placeholder_quality(LEVELS), ElasticSettings(max_waiting=max_waiting))
        worker = Worker(
            pipeline,
            executor or Executor(pipeline, num_slots=16),
            RequestScheduler(COST, policy),
            clock=clock,
            observer=observer,
        )
        made.append(worker)
        return worker

    yield make
    for worker in made:
        worker.stop()


def order(
    pipeline: Pipeline,
    *,
    condition: ClassCondition | None = None,
    seeds: Sequence[int] = (7,),
    steps: int = 2,
    latency_ms: float | None = None,
    level: int | None = None,
    arrived_s: float | None = None,
) -> Order:
    """Without `latency_ms` there is no promise; with `level` it is pinned."""
    plan = pipeline.plan(steps=steps)
    arrived_s = CLOCK.now() if arrived_s is None else arrived_s
    return Order(
        strides=(1,) * steps,
        condition=condition or pipeline.conditions[2],
        shape=pipeline.shapes[0].name,
        seeds=tuple(seeds),
        guidance=plan.guidance,
        time_shift=plan.time_shift,
        weak_caps=plan.at_level(4).weak_caps(4),
        arrived_s=arrived_s,
        latency_ms=60_000 if latency_ms is None else latency_ms,
        is_hard=latency_ms is not None,
        min_level=1,
        max_level=4,
        pinned=None if level is None else (level,) * steps,
        priority=Priority.INTERACTIVE,
        output_format="png",
    )


def file_of(future: Future[Outcome]) -> bytes:
    (image,) = future.result(60).pictures
    return image.file


def offline(pipeline: Pipeline, levels: Sequence[int], seed: int = 7) -> bytes:
    return pipeline.run([pipeline.conditions[2]], [seed], pipeline.plan(levels=levels))[0].encode()


def test_an_image_comes_back_as_the_pipeline_makes_it_with_its_levels_and_times(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    worker = make_worker()
    worker.start()
    asked_s = CLOCK.now()
    (image,) = worker.submit(order(pipeline, steps=3, arrived_s=asked_s)).result(60).pictures
    elapsed_ms = 1000 * (CLOCK.now() - asked_s)
    assert image.file == offline(pipeline, image.levels)
    assert len(image.levels) == 3
    assert image.compute_ms > 0
    assert min(image.queue_ms, image.encode_ms) >= 0
    assert image.queue_ms + image.compute_ms + image.encode_ms <= elapsed_ms


def test_a_pinned_level_is_run_as_it_is(make_worker: StartWorker, pipeline: Pipeline) -> None:
    worker = make_worker()
    worker.start()
    futures = {level: worker.submit(order(pipeline, level=level)) for level in LEVELS}
    for level, future in futures.items():
        assert future.result(60).pictures[0].levels == [level, level]


def test_images_of_one_order_share_their_steps(make_worker: StartWorker, pipeline: Pipeline) -> None:
    recorder = Recorder()
    worker = make_worker(observer=recorder)
    worker.start()
    outcome = worker.submit(order(pipeline, seeds=(1, 2, 3), level=2)).result(60)
    assert [image.seed for image in outcome.pictures] == [1, 2, 3]
    assert [len(step.request_ids) for step in recorder.steps] == [3, 3]


def test_an_arrival_joins_at_the_next_step(make_worker: StartWorker, pipeline: Pipeline) -> None:
    executor = StepByStep(pipeline)
    worker = make_worker(executor)
    worker.start()
    first = worker.submit(order(pipeline, steps=3, level=2))
    executor.has_started.acquire(timeout=60)
    second = worker.submit(order(pipeline, steps=3, level=2))  # while the first step runs
    executor.may_run.release(10)
    assert file_of(first) == file_of(second)
    assert [len(pictures) for pictures in executor.launches] == [1, 2, 2, 1]


def test_how_long_the_device_had_nothing_to_run_is_told_of_a_step_that_did_not_come_at_once(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    """Before the first there was no work."""
    executor, recorder = StepByStep(pipeline), Recorder()
    worker = make_worker(executor, recorder)
    worker.start()
    future = worker.submit(order(pipeline, steps=2, level=2))
    executor.may_run.release()
    for _ in range(2):
        assert executor.has_started.acquire(timeout=60)
    time.sleep(0.2)
    executor.may_run.release()
    file_of(future)
    first_ms, second_ms = recorder.gaps_ms
    assert first_ms is None
    assert second_ms is not None
    assert second_ms >= 200


class Watched(Executor):
    """Counts the images of which there are previews; may fail at them."""

    def __init__(self, pipeline: Pipeline, *, fails: bool = False) -> None:
        super().__init__(pipeline, num_slots=16)
        self.num_watched = 0
        self.fails = fails

    def watch(self, pictures: Sequence[Picture]) -> None:
        self.num_watched += len(pictures)
        super().watch(pictures)

    def preview(self, pictures: Sequence[Picture]) -> Transfer:
        if self.fails:
            raise RuntimeError("no room for a preview")
        return super().preview(pictures)


@pytest.mark.parametrize(
    ("steps", "num_previews", "after"),
    [(8, 3, (2, 4, 6)), (8, 1, (4,)), (8, 0, ()), (2, 3, (1,)), (1, 3, ()), (5, 3, (1, 2, 4))],
)
def test_previews_are_spread_over_the_steps_and_come_in_order_before_the_picture(
    make_worker: StartWorker, pipeline: Pipeline, steps: int, num_previews: int, after: tuple[int, ...]
) -> None:
    executor = Watched(pipeline)
    worker = make_worker(executor)
    worker.start()
    events: list[Preview | None] = []
    asked = replace(order(pipeline, steps=steps), num_previews=num_previews)
    future = worker.submit(asked, on_preview=events.append)
    future.add_done_callback(lambda _: events.append(None))
    assert file_of(future) == offline(pipeline, future.result().pictures[0].levels)
    *previews, end = events
    assert end is None
    assert [(preview.index, preview.num_steps) for preview in previews if preview] == list(enumerate(after))
    assert executor.num_watched == len(after)


def test_who_asks_for_no_previews_costs_none(make_worker: StartWorker, pipeline: Pipeline) -> None:
    executor = Watched(pipeline)
    worker = make_worker(executor)
    first = worker.submit(order(pipeline, steps=4, level=2))
    second = worker.submit(replace(order(pipeline, steps=4, level=2), num_previews=1), on_preview=lambda _: None)
    worker.start()
    assert file_of(first) == file_of(second)
    assert executor.num_watched == 1


def test_a_preview_that_fails_takes_nothing_from_the_picture(make_worker: StartWorker, pipeline: Pipeline) -> None:
    worker = make_worker(Watched(pipeline, fails=True))
    worker.start()
    shown: list[Preview] = []
    future = worker.submit(replace(order(pipeline, steps=4), num_previews=2), on_preview=shown.append)
    assert file_of(future) == offline(pipeline, future.result().pictures[0].levels)
    assert shown == []


def test_who_asks_is_told_of_every_step_once_it_has_run_and_before_the_outcome(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    executor = StepByStep(pipeline)
    worker = make_worker(executor)
    worker.start()
    told: queue.Queue[StepRun | None] = queue.Queue()
    future = worker.submit(order(pipeline, seeds=(7, 8), steps=3, level=2), on_step=told.put)
    future.add_done_callback(lambda _: told.put(None))
    for number in (1, 2, 3):
        executor.has_started.acquire(timeout=60)
        assert told.empty()
        executor.may_run.release()
        steps = [told.get(timeout=60) for _ in range(2)]
        assert steps == [StepRun(seed=seed, number=number, num_steps=3, level=2) for seed in (7, 8)]
    assert told.get(timeout=60) is None


def test_an_impossible_target_is_refused_with_the_smallest_that_works(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    clock = VirtualClock()
    worker = make_worker(clock=clock)
    with pytest.raises(Infeasible) as refusal:
        worker.submit(order(pipeline, latency_ms=100, arrived_s=clock.now()))
    assert refusal.value.value == 100
    assert refusal.value.min_latency_ms >= 1200  # two steps of 100 ms at the lowest level, and the overhead
    worker.submit(order(pipeline, latency_ms=refusal.value.min_latency_ms, arrived_s=clock.now()))


def test_a_target_that_promises_stand_in_the_way_of_is_refused_with_a_time_to_come_back(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    worker = make_worker()
    worker.submit(order(pipeline, steps=100, level=4, latency_ms=50_000))
    with pytest.raises(Overloaded) as refusal:
        worker.submit(order(pipeline, steps=100, level=4, latency_ms=50_000))
    assert refusal.value.reason == "overloaded"
    assert refusal.value.retry_after_s > 0


def test_a_full_queue_refuses_also_those_without_a_target(make_worker: StartWorker, pipeline: Pipeline) -> None:
    worker = make_worker(max_waiting=4)
    waiting = [worker.submit(order(pipeline)) for _ in range(4)]
    with pytest.raises(Overloaded) as refusal:
        worker.submit(order(pipeline))
    assert refusal.value.reason == "queue_full"
    assert worker.num_waiting == 4
    waiting[0].cancel()
    worker.submit(order(pipeline))


def test_there_are_never_more_images_than_slots(make_worker: StartWorker, pipeline: Pipeline) -> None:
    worker = make_worker(Executor(pipeline, num_slots=3))
    futures = [worker.submit(order(pipeline, seeds=(seed,), level=1)) for seed in range(3)]
    with pytest.raises(Overloaded, match="queue is full"):
        worker.submit(order(pipeline))
    worker.start()
    assert [future.result(60).pictures[0].seed for future in futures] == [0, 1, 2]
    assert file_of(worker.submit(order(pipeline, level=1))) == offline(pipeline, (1, 1))


def test_a_caller_who_leaves_frees_the_device_within_a_step(make_worker: StartWorker, pipeline: Pipeline) -> None:
    executor = StepByStep(pipeline)
    worker = make_worker(executor)
    worker.start()
    unwanted = worker.submit(order(pipeline, steps=50))
    executor.has_started.acquire(timeout=60)
    assert unwanted.cancel()
    executor.may_run.release(10)
    assert file_of(worker.submit(order(pipeline, level=3))) == offline(pipeline, (3, 3))
    assert len(executor.launches) == 3  # one for him who left
    assert executor.num_free == executor.num_slots


def test_a_failing_step_fails_its_own_requests_only(
    make_worker: StartWorker, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder()
    executor = Executor(pipeline, num_slots=16)
    worker = make_worker(executor, recorder)
    before, after = worker.submit(order(pipeline, level=2)), worker.submit(order(pipeline, level=4))
    broken = worker.submit(order(pipeline, condition=ClassCondition(10**6, "nothing"), level=3, seeds=(1, 2)))
    worker.start()
    with pytest.raises(GenerationFailed, match="IndexError"):
        broken.result(60)
    assert file_of(before) == offline(pipeline, (2, 2))
    assert file_of(after) == offline(pipeline, (4, 4))
    assert file_of(worker.submit(order(pipeline, level=1))) == offline(pipeline, (1, 1))
    assert recorder.failures == [("step", 2)]
    assert executor.num_free == executor.num_slots
    assert "IndexError" in caplog.text


class NoRoses(StepByStep):
    """Cannot begin what is of the second class."""

    def add(self, *pictures: Picture) -> None:
        if any(picture.condition == self._drawing.conditions[1] for picture in pictures):
            raise RuntimeError("no word for a rose")
        super().add(*pictures)


def test_what_cannot_begin_fails_alone_and_not_what_runs_or_begins_beside_it(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    recorder, executor = Recorder(), NoRoses(pipeline)
    worker = make_worker(executor, recorder)
    worker.start()
    running = worker.submit(order(pipeline, steps=3, level=2))
    executor.has_started.acquire(timeout=60)
    broken = worker.submit(order(pipeline, condition=pipeline.conditions[1], seeds=(1, 2), steps=3, level=2))
    beginning = worker.submit(order(pipeline, seeds=(8,), steps=3, level=2))
    executor.may_run.release(10)
    with pytest.raises(GenerationFailed, match="RuntimeError"):
        broken.result(60)
    assert file_of(running) == offline(pipeline, (2, 2, 2))
    assert file_of(beginning) == offline(pipeline, (2, 2, 2), seed=8)
    assert [len(pictures) for pictures in executor.launches] == [1, 2, 2, 1]
    assert recorder.failures == [("step", 2)]
    assert executor.num_free == executor.num_slots


class LikeGpu(Executor):
    """Launching only enqueues: steps run in order on a thread of their own, and each waits for the test's leave."""

    is_asynchronous = True

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.enqueued: queue.Queue[list[int]] = queue.Queue()  # the pictures of each launch
        self.may_run = threading.Semaphore(1)  # for the warm-up
        self._stream = ThreadPoolExecutor(1)

    def add(self, picture: Picture) -> None:
        self._stream.submit(super().add, picture).result()  # after everything that is enqueued

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:
            self.enqueued.put([picture.picture_id for picture in pictures])
        return super().launch(pictures, kind)

    def _run(self, inputs: torch.Tensor, kind: StepKind) -> RunningStep:
        return _Enqueued(self._stream.submit(self._run_now, inputs, kind))

    @torch.inference_mode()
    def _run_now(self, inputs: torch.Tensor, kind: StepKind) -> float:
        assert self.may_run.acquire(timeout=60)
        return super()._run(inputs, kind).wait()

    def collect(self, pictures: Sequence[Picture]) -> Transfer:
        return _EnqueuedTransfer(self._stream.submit(super().collect, pictures))


@dataclass(frozen=True)
class _EnqueuedTransfer:
    future: Future[Transfer]

    def result(self) -> list[torch.Tensor | GenerationFailed]:
        return self.future.result(60).result()

    def took_ms(self) -> float:
        return self.future.result(60).took_ms()


@dataclass(frozen=True)
class _Enqueued:
    future: Future[float]

    def is_done(self) -> bool:
        return self.future.done()

    def wait(self) -> float:
        return self.future.result(60)


def test_where_launching_only_enqueues_the_next_step_is_enqueued_while_one_runs(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    executor = LikeGpu(pipeline, num_slots=16)
    worker = make_worker(executor)
    worker.start()
    first = worker.submit(order(pipeline, steps=3, level=1))
    assert executor.enqueued.get(timeout=60) == executor.enqueued.get(timeout=60)
    assert executor.enqueued.empty()  # one ahead, so that an arrival waits for two steps at most
    second = worker.submit(order(pipeline, steps=3, level=1, seeds=(8,)))
    executor.may_run.release(100)
    assert file_of(first) == offline(pipeline, (1, 1, 1))
    assert file_of(second) == offline(pipeline, (1, 1, 1), seed=8)
    assert len(executor.enqueued.get(timeout=60)) == 2


def test_one_who_leaves_while_two_of_his_steps_are_enqueued_does_not_touch_the_next_owner_of_his_slot(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    executor = LikeGpu(pipeline, num_slots=1)
    worker = make_worker(executor)
    worker.start()
    unwanted = worker.submit(order(pipeline, steps=50, level=1))
    for _ in range(2):
        executor.enqueued.get(timeout=60)
    unwanted.cancel()
    executor.may_run.release(100)
    assert file_of(worker.submit(order(pipeline, level=1))) == offline(pipeline, (1, 1))


class SmallMemory(Executor):
    """Has room for steps of so many images."""

    room = 2

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if len(pictures) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return super().launch(pictures, kind)


def test_a_batch_without_room_runs_in_halves_and_none_so_large_comes_after(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    recorder = Recorder()
    worker = make_worker(SmallMemory(pipeline, num_slots=16), recorder)
    futures = [worker.submit(order(pipeline, seeds=(seed,), level=2)) for seed in range(8)]
    worker.start()
    for seed, future in enumerate(futures):
        assert future.result(60).pictures[0].levels == [2, 2]
        assert future.result(60).pictures[0].seed == seed
    sizes = [len(step.request_ids) for step in recorder.steps]
    assert sizes[0] == 8
    assert max(sizes[1:]) == 2
    assert recorder.failures == []


class Allocated:
    """What a step has taken of memory when it fails."""


class HoldsWhatItTook(SmallMemory):
    """Has no room for halves as long as anything of the whole is left."""

    taken: weakref.ref[Allocated] | None = None

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if self.taken is not None and self.taken() is not None:
            raise RuntimeError("memory of the attempt that failed is still held")
        memory = Allocated()
        self.taken = weakref.ref(memory)
        return super().launch(pictures, kind)


def test_halves_are_launched_once_all_memory_of_the_whole_is_free(make_worker: StartWorker, pipeline: Pipeline) -> None:
    recorder = Recorder()
    worker = make_worker(HoldsWhatItTook(pipeline, num_slots=16), recorder)
    futures = [worker.submit(order(pipeline, seeds=(seed,), level=2)) for seed in range(8)]
    worker.start()
    assert all(file_of(future) for future in futures)
    assert recorder.failures == []


def test_an_image_that_does_not_fit_alone_fails(make_worker: StartWorker, pipeline: Pipeline) -> None:
    recorder = Recorder()
    executor = SmallMemory(pipeline, num_slots=16)
    worker = make_worker(executor, recorder)
    worker.start()
    worker.wait_until_ready()
    executor.room = 0
    with pytest.raises(GenerationFailed, match="OutOfMemoryError"):
        worker.submit(order(pipeline)).result(60)
    assert recorder.failures == [("memory", 1)]
    executor.room = 1
    assert file_of(worker.submit(order(pipeline, level=1))) == offline(pipeline, (1, 1))


def test_a_promise_whose_time_has_passed_is_ended_and_a_wish_is_not(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    clock, executor = VirtualClock(), StepByStep(pipeline)
    worker = make_worker(executor, clock=clock)
    promised = worker.submit(order(pipeline, level=2, latency_ms=5000, arrived_s=clock.now()))
    wished = worker.submit(order(pipeline, level=2, arrived_s=clock.now()))
    worker.start()
    executor.has_started.acquire(timeout=60)
    clock.advance(100)  # the device stands still
    executor.may_run.release(10)
    with pytest.raises(DeadlineExceeded, match="5000"):
        promised.result(60)
    assert wished.result(60).pictures[0].compute_ms >= 100_000
    assert (worker.counters.promised, worker.counters.kept, worker.counters.missed) == (1, 0, 1)


def test_a_picture_that_is_encoded_too_late_is_not_delivered(make_worker: StartWorker, pipeline: Pipeline) -> None:
    clock, executor = VirtualClock(), StepByStep(pipeline)
    worker = make_worker(executor, clock=clock)
    worker.start()
    promised = worker.submit(order(pipeline, steps=1, level=2, latency_ms=5000, arrived_s=clock.now()))
    executor.has_started.acquire(timeout=60)
    clock.advance(100)
    executor.may_run.release(1)
    with pytest.raises(DeadlineExceeded):
        promised.result(60)
    assert executor.num_free == executor.num_slots


def test_draining_finishes_what_was_accepted_and_takes_nothing_more(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    executor = StepByStep(pipeline)
    worker = make_worker(executor)
    worker.start()
    futures = [worker.submit(order(pipeline, seeds=(seed,))) for seed in range(3)]
    executor.has_started.acquire(timeout=60)
    drain = threading.Thread(target=worker.drain, args=(1e10,))  # longer than a thread can wait
    drain.start()
    while worker.is_ready:
        drain.join(0.01)
    with pytest.raises(EngineStopped):
        worker.submit(order(pipeline))
    assert worker.is_alive
    executor.may_run.release(100)
    drain.join(60)
    assert all(future.result(0).pictures for future in futures)
    assert not worker.is_alive


def test_draining_ends_at_its_limit(make_worker: StartWorker, pipeline: Pipeline) -> None:
    worker = make_worker()
    unfinished = worker.submit(order(pipeline))  # it was never started
    worker.drain(0)
    with pytest.raises(EngineStopped):
        unfinished.result(0)


def test_stopping_refuses_what_is_left(make_worker: StartWorker, pipeline: Pipeline) -> None:
    worker = make_worker()
    queued = [worker.submit(order(pipeline)) for _ in range(3)]
    given_up = worker.submit(order(pipeline))
    given_up.cancel()
    worker.stop()
    for future in queued:
        with pytest.raises(EngineStopped):
            future.result(0)
    with pytest.raises(CancelledError):
        given_up.result(0)
    with pytest.raises(EngineStopped):
        worker.submit(order(pipeline))


class LostDevice(Executor):
    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:
            raise torch.AcceleratorError("an illegal memory access was encountered")
        return super().launch(pictures, kind)


def test_when_the_device_is_lost_the_worker_dies_and_nobody_waits_for_ever(
    make_worker: StartWorker, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    worker = make_worker(LostDevice(pipeline, num_slots=16))
    futures = [worker.submit(order(pipeline)) for _ in range(3)]
    worker.start()
    for future in futures:
        with pytest.raises(EngineStopped):
            future.result(60)
    with pytest.raises(EngineStopped):
        worker.submit(order(pipeline))
    assert not worker.is_alive
    assert "the worker died" in caplog.text


class Defective(ElasticPolicy):
    """Fails in every second decision."""

    def __init__(self) -> None:
        super().__init__(placeholder_quality(LEVELS))
        self.decisions = 0

    def choose(self, view: View) -> Choice | None:
        self.decisions += 1
        if self.decisions % 2:
            raise AssertionError("a defect")
        return super().choose(view)


def test_pictures_are_made_though_decisions_fail_and_the_log_tells_of_each_defect_once(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    worker = Worker(pipeline, Executor(pipeline, num_slots=16), RequestScheduler(COST, Defective()), clock=CLOCK)
    futures = [worker.submit(order(pipeline, seeds=(seed,), steps=4)) for seed in range(3)]
    worker.start()
    files = [future.result(timeout=60).pictures[0].file for future in futures]
    worker.drain(timeout_s=60)
    assert all(files)
    assert worker.counters.decision_errors >= 2
    (record,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "made by the fixed policy" in record.getMessage()
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], AssertionError)


def test_when_a_full_queue_has_room_is_told_alike_until_somebody_is_taken(
    make_worker: StartWorker, pipeline: Pipeline
) -> None:
    """Nobody runs: the worker is not started. A picture takes 0.2 s, so there is room within that time."""
    clock = VirtualClock()
    worker = make_worker(max_waiting=4, clock=clock)
    waiting = [worker.submit(order(pipeline, arrived_s=0.0)) for _ in range(4)]

    def told_s() -> float:
        with pytest.raises(Overloaded, match="queue is full") as refusal:
            worker.submit(order(pipeline, arrived_s=clock.now()))
        return refusal.value.retry_after_s

    first_s = told_s()
    assert first_s == told_s()
    clock.advance(first_s / 4)
    assert told_s() == pytest.approx(0.75 * first_s)
    waiting[0].cancel()
    worker.submit(order(pipeline, arrived_s=clock.now()))
    assert told_s() == pytest.approx(first_s), "it is found out anew"
