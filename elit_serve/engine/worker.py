"""The one thread that touches the device: jobs in, pictures out. Knows nothing of HTTP."""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from elit_serve.clock import Clock
from elit_serve.engine.pipeline import Picture, Pipeline
from elit_serve.engine.predict import Predictor
from elit_serve.errors import ElitError, EngineStopped, GenerationFailed, Infeasible, Overloaded
from elit_serve.sampling import Plan
from elit_serve.scheduler import highest_level_within

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Job:
    """A batch of pictures under one plan.

    arrived_s: when the caller asked, on the worker's clock.
    latency_ms: by when, after `arrived_s`, the pictures should be there; None is whenever they are.
    candidates: levels that the policy may choose from when the job starts; none when the plan is pinned.
    """

    class_ids: tuple[int, ...]
    seeds: tuple[int, ...]
    plan: Plan
    arrived_s: float
    latency_ms: float | None = None
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a job: its pictures, the plan that was run, and where the time went."""

    pictures: tuple[Picture, ...]
    plan: Plan
    queue_ms: float
    compute_ms: float


def plan_at_start(job: Job, now_s: float, predictor: Predictor) -> Plan:
    """The plan to run for a job that starts now: the time it waited is gone from its target.

    When nothing fits any more it runs at its lowest level.
    """
    if job.latency_ms is None or not job.candidates:
        return job.plan
    remaining_ms = job.latency_ms - 1000 * (now_s - job.arrived_s)
    try:
        level = highest_level_within(
            remaining_ms,
            job.candidates,
            lambda level: predictor.plan_ms(job.plan.at_level(level), len(job.seeds)),
        )
    except Infeasible:
        level = min(job.candidates)
    return job.plan.at_level(level)


class Worker:
    """Runs one job at a time, first come first served.

    A job that fails fails alone. A job cancelled while it waits never runs; one abandoned while it runs ends early.
    """

    def __init__(self, pipeline: Pipeline, predictor: Predictor, *, clock: Clock, max_queue: int) -> None:
        self._pipeline = pipeline
        self._predictor = predictor
        self._clock = clock
        self._max_queue = max_queue
        self._queue: deque[tuple[Job, Future[Outcome]]] = deque()
        self._running: Job | None = None
        self._abandoned: Future[Outcome] | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="elit-worker", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being run."""
        return self._thread.is_alive() and not self._stopping

    @property
    def queue_length(self) -> int:
        """Jobs that wait; neither the running one nor cancelled ones count."""
        with self._changed:
            return sum(not future.cancelled() for _, future in self._queue)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> Future[Outcome]:
        """Queues a job, also before the start.

        Raises `Overloaded` when the queue is full and `EngineStopped` once the worker has stopped.
        """
        with self._changed:
            if self._stopping:
                raise EngineStopped("the engine is not running")
            self._drop_cancelled()
            if len(self._queue) >= self._max_queue:
                raise Overloaded(len(self._queue), self._seconds_of_work())
            future: Future[Outcome] = Future()
            self._queue.append((job, future))
            self._changed.notify()
        return future

    def abandon(self, future: Future[Outcome]) -> None:
        """For a caller who has left: a waiting job never runs, a running one ends after the step it is at."""
        if not future.cancel() and not future.done():
            self._abandoned = future

    def stop(self, *, finish_queued: bool = False, timeout_s: float | None = None) -> None:
        """Takes no more jobs, ends the running one, then finishes or refuses what is queued."""
        with self._changed:
            self._stopping = True
            refused = [] if finish_queued else list(self._queue)
            if not finish_queued:
                self._queue.clear()
            self._changed.notify()
        _refuse(refused)
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while (entry := self._next()) is not None:
                job, future = entry
                if future.set_running_or_notify_cancel():
                    self._execute(job, future)
                with self._changed:
                    self._running = self._abandoned = None
        finally:  # also when the thread dies: nobody may wait for ever
            with self._changed:
                self._stopping = True
                left = list(self._queue)
                self._queue.clear()
            _refuse(left)

    def _next(self) -> tuple[Job, Future[Outcome]] | None:
        """Waits for a job; None when there will be no more."""
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return None
                self._changed.wait()
            job, future = self._queue.popleft()
            self._running = job
            return job, future

    def _execute(self, job: Job, future: Future[Outcome]) -> None:
        def stop_if_abandoned(_: int) -> None:
            if self._abandoned is future:
                raise GenerationFailed("the caller left before it was done")

        started_s = self._clock.now()
        try:
            plan = plan_at_start(job, started_s, self._predictor)
            pictures = self._pipeline.run(job.class_ids, job.seeds, plan, stop_if_abandoned)
        except ElitError as error:
            logger.warning("a job failed: %s", error)
            future.set_exception(error)
        except Exception as error:
            logger.exception("a job failed")
            future.set_exception(GenerationFailed(f"the engine failed with {type(error).__name__}"))
        except BaseException:
            future.set_exception(EngineStopped("the engine stopped while it ran this job"))
            raise
        else:
            ended_s = self._clock.now()
            future.set_result(
                Outcome(
                    pictures=tuple(pictures),
                    plan=plan,
                    queue_ms=1000 * (started_s - job.arrived_s),
                    compute_ms=1000 * (ended_s - started_s),
                )
            )

    def _drop_cancelled(self) -> None:
        waiting = [entry for entry in self._queue if not entry[1].cancelled()]
        self._queue.clear()
        self._queue.extend(waiting)

    def _seconds_of_work(self) -> int:
        """What is queued and running, in whole predicted seconds."""
        jobs = [job for job, _ in self._queue] + ([self._running] if self._running else [])
        return math.ceil(sum(self._predictor.plan_ms(job.plan, len(job.seeds)) for job in jobs) / 1000)


def _refuse(entries: list[tuple[Job, Future[Outcome]]]) -> None:
    for _, future in entries:
        if future.set_running_or_notify_cancel():
            future.set_exception(EngineStopped("the engine stopped before it reached this job"))
