"""The only loop: it drives scheduler and executor, and alone touches the device. Knows nothing of HTTP.

Three kinds of threads meet here. Callers submit jobs and get a future at once; cancelling the future gives the job
up. The worker's thread turns the loop: one step decided and launched, one step finished. A pool decodes and encodes
what is finished, while the next step runs. They share the scheduler and the table of images in flight under one lock,
which nobody holds while waiting for the device.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from itertools import count

import torch

from elit_serve.clock import Clock
from elit_serve.engine.accepted import AcceptedImage, AcceptedRequest, LaunchedPart, LaunchedStep, resolve
from elit_serve.engine.encoders import Encoders
from elit_serve.engine.executor.slots import Executor
from elit_serve.engine.foresight import FULL, Asked, Foresight, foresee, infeasible, overloaded
from elit_serve.engine.in_flight import InFlight
from elit_serve.engine.launcher import Launcher
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.order import Job, Outcome, Preview, StepRun
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.warm_up import warm_up
from elit_serve.errors import (
    DeadlineExceeded,
    ElitError,
    EngineStopped,
    GenerationFailed,
    Overloaded,
)
from elit_serve.scheduler.core import Counters, RequestScheduler
from elit_serve.scheduler.replay import as_text
from elit_serve.scheduler.requests import Launch, Refusal, Wait

logger = logging.getLogger(__name__)

LEAD_S = 0.0015  # a launch is enqueued this long before the device is expected to be free: deciding and enqueueing
LEAD_SHARE = 0.03  # plus this share of the running step, because it may end early
POLL_S = 0.002  # and so often it is looked whether it has, for steps that take much less than was predicted


class Observer:
    """Is told what happens, on the thread where it happens; this one does nothing with it."""

    def step_finished(self, launch: Launch, observed_ms: float | None) -> None:
        """observed_ms: what it took on the device; None if it did not run as it was planned."""

    def images_failed(self, cause: str, num_images: int) -> None:
        """cause: `step`, `memory`, `nan` or `encoding`."""


class Worker:
    """Runs jobs on one executor, as the scheduler decides.

    Accepted images that are not done, waiting ones included, are never more than the executor has slots, so whatever
    the scheduler decides there is a slot for everybody; an image takes its slot when its first step is launched.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        executor: Executor,
        scheduler: RequestScheduler,
        *,
        clock: Clock,
        observer: Observer | None = None,
    ) -> None:
        self._pipeline = pipeline
        self._executor = executor
        self._scheduler = scheduler
        self._clock = clock
        self._observer = observer or Observer()
        self._depth = 2 if executor.is_asynchronous else 1
        self._running: deque[LaunchedStep] = deque()  # launched and not finished; the worker's thread only
        self._free_s = 0.0  # when the device has done all of these, as predicted
        self._request_ids = count()
        self._images: dict[int, AcceptedImage] = {}  # accepted and not ended
        self._room_s: dict[int, float] = {}  # when a full queue will have room for so many images, as far as is known
        self._vacated: list[int] = []  # ended images whose slots are still to be freed
        self._changed = threading.Condition()
        self._accepts = True
        self._is_ready = threading.Event()
        self._stopping = False
        self._ended: Future[None] = Future()
        self._has_died = False
        self._thread = threading.Thread(target=self._run, name="elit-worker", daemon=True)
        self._encoders = Encoders(pipeline, on_file=self._delivered, on_failure=self._fail)
        self._launcher = Launcher(executor, self._encoders, on_failure=self._fail, on_small_memory=self._limit_batch)

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being run."""
        return self._thread.is_alive() and not self._stopping

    @property
    def ended(self) -> Future[None]:
        """Done once the loop has ended, for whatever reason, and everybody was told."""
        return self._ended

    @property
    def has_died(self) -> bool:
        """Whether the loop ended by an error. So it says when jobs that were not done fail with `EngineStopped`."""
        return self._has_died

    @property
    def is_ready(self) -> bool:
        """Whether new jobs are taken and run without delay: warm, not draining, alive."""
        return self._is_ready.is_set() and self._accepts and self.is_alive

    @property
    def is_draining(self) -> bool:
        """Whether no more jobs are taken."""
        return not self._accepts

    @property
    def num_waiting(self) -> int:
        """Accepted images of which no step has run. Without the lock, for whoever may not wait for it."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Images between their first and their last step; read as the above."""
        return self._scheduler.num_running

    def waiting_by_owner(self) -> Counter[str]:
        """How many accepted images of which no step has run each owner has; those of nobody do not count."""
        with self._changed:
            owners = [image.request.job.owner for image in self._images.values() if image.started_s is None]
        return Counter(owner for owner in owners if owner is not None)

    @property
    def counters(self) -> Counters:
        """What the scheduler has counted."""
        with self._changed:
            return self._scheduler.counters

    @property
    def correction(self) -> float:
        """Observed over predicted step times, lately."""
        with self._changed:
            return self._scheduler.correction(self._clock.now())

    def start(self) -> None:
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Returns once the device is warm, or the worker is dead."""
        self._is_ready.wait()

    def submit(
        self,
        job: Job,
        open_plans: OpenPlans | None = None,
        on_preview: Callable[[Preview], None] | None = None,
        on_step: Callable[[StepRun], None] | None = None,
    ) -> Future[Outcome]:
        """Takes a job, also before the start; cancelling its future gives it up within a step.

        With `open_plans` the job gets one of these plans in place of its own. `on_preview` is given the previews that
        it asks for, on a thread of the encoders', each image's in order and before its outcome; `on_step` is told of
        every step that has run, on the worker's thread. Neither may wait or raise.
        Raises `Infeasible` or `Overloaded` as the scheduler refuses it, and `EngineStopped` once no more is taken.
        """
        asked = Asked(job=job, open_plans=open_plans, num_slots=self._executor.num_slots)
        with self._changed:
            self._check_accepting()
            now_s = self._clock.now()
            request = AcceptedRequest(asked.given(self._scheduler), Future(), on_preview, on_step)
            request.images = [AcceptedImage(request, index, next(self._request_ids)) for index in range(len(job.seeds))]
            refusal = self._admit(request, now_s) if asked.has_room(len(self._images)) else FULL
            known = None if refusal is None else self._known_error(refusal, asked, now_s)
            scheduler = self._scheduler if refusal is None or known else self._scheduler.copy()
        if refusal is not None:
            raise known or self._overloaded(refusal, asked, scheduler, now_s)
        request.future.add_done_callback(lambda future: self._give_up(request) if future.cancelled() else None)
        return request.future

    def foresee(self, job: Job, open_plans: OpenPlans | None = None) -> Foresight:
        """What `submit` would do with this job now, and how it would go on; takes nothing and changes nothing.

        Raises `EngineStopped` once no more is taken.
        """
        with self._changed:
            self._check_accepting()
            scheduler, now_s = self._scheduler.copy(), self._clock.now()
        return foresee(Asked(job=job, open_plans=open_plans, num_slots=self._executor.num_slots), scheduler, now_s)

    def in_flight(self, max_pictures: int) -> InFlight:
        """What is being made now, and what was counted. Holds the lock for a few microseconds."""
        with self._changed:
            images, now_s, scheduler = list(self._images.values()), self._clock.now(), self._scheduler
            waiting, running = scheduler.num_waiting, scheduler.num_running
            correction, counters = scheduler.correction(now_s), scheduler.counters
        shown = sorted(images, key=lambda image: not image.levels)[:max_pictures]
        return InFlight(
            now_s=now_s,
            num_pictures=len(images),
            num_waiting=waiting,
            num_running=running,
            correction=correction,
            counters=counters,
            pictures=tuple(image.seen() for image in shown),
        )

    def drain(self, timeout_s: float) -> None:
        """Takes no more jobs, finishes the accepted ones if they are done within `timeout_s`, and stops."""
        with self._changed:
            self._accepts = False
            self._changed.wait_for(lambda: self._stopping or not self._images, min(timeout_s, threading.TIMEOUT_MAX))
        self.stop()

    def stop(self) -> None:
        """Ends the loop after the step that runs; jobs that are not done fail with `EngineStopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    # The worker's thread

    def _run(self) -> None:
        try:
            warm_up(self._executor, self._pipeline, next(self._request_ids))
            self._is_ready.set()
            while not self._stopping:
                self._turn()
        except BaseException:
            self._has_died = True
            logger.critical("the worker died", exc_info=True)
        finally:
            self._close()
            self._ended.set_result(None)

    def _turn(self) -> None:
        """One step launched, if there is anything to run, and one finished."""
        self._sleep_until_almost_free()
        decision, members = self._decide()
        if isinstance(decision, Launch):
            self._launch(decision, members)
        if len(self._running) == self._depth or (self._running and isinstance(decision, Wait)):
            self._finish(self._running.popleft())

    def _sleep_until_almost_free(self) -> None:
        """The later a step is decided, the more arrivals may join it; but the device must not wait for it."""
        if not self._running:
            return
        step = self._running[0]
        due_s = self._free_s - LEAD_S - LEAD_SHARE * step.launch.predicted_ms / 1000
        while not step.is_done() and (left_s := due_s - self._clock.now()) > 0:
            time.sleep(min(left_s, POLL_S))
        if step.is_done():
            self._free_s = self._clock.now()

    def _decide(self) -> tuple[Launch | Wait, list[AcceptedImage]]:
        """The next launch and its members. If there is nothing at all to do, waits for something to change."""
        with self._changed:
            now_s = self._clock.now()
            self._expire(now_s)
            decision = self._scheduler.decide(max(now_s, self._free_s) if self._running else now_s)
            self._log_defects()
            if isinstance(decision, Launch):
                members = [self._images[request_id] for request_id in decision.request_ids]
            else:
                members = []
                if not (self._running or self._vacated or self._stopping):
                    until_s = math.inf if decision.until_s is None else decision.until_s
                    self._changed.wait(min(max(0.0, until_s - now_s), threading.TIMEOUT_MAX))  # three centuries
            vacated, self._vacated = self._vacated, []
        for request_id in vacated:
            self._executor.remove(request_id)
        return decision, members

    def _log_defects(self) -> None:
        """Of the scheduler, each with the state from which `scheduler.replay.from_text` makes it again."""
        while (defect := self._scheduler.take_defect()) is not None:
            state = as_text(defect.scheduler)
            logger.error("a decision failed, and was made by the fixed policy: state %s", state, exc_info=defect.error)

    def _launch(self, launch: Launch, members: Sequence[AcceptedImage]) -> None:
        start_s = max(self._clock.now(), self._free_s if self._running else 0.0)
        for image in members:
            if image.started_s is None:
                image.started_s = start_s
                self._executor.add(image.task)
        parts = self._launcher.launch(launch, {image.request_id: image for image in members})
        self._running.append(LaunchedStep(launch, tuple(parts)))
        self._free_s = start_s + launch.predicted_ms / 1000

    def _limit_batch(self, max_batch: int) -> None:
        with self._changed:
            self._scheduler.limit_batch(max_batch)

    def _finish(self, step: LaunchedStep) -> None:
        """Waits for a step, and hands what it finished to the encoders."""
        observed_ms = self._observe(step)
        with self._changed:
            now_s = self._clock.now()
            done = self._scheduler.finished(step.launch.launch_id, now_s, observed_ms)
        self._free_s = now_s + sum(later.launch.predicted_ms for later in self._running) / 1000
        for part in step.parts:
            for tell, step_run in part.watched:
                tell(step_run)
            for image in part.last:
                image.ended_s = now_s
            if part.transfer is not None:
                self._encoders.encode(part.last, part.transfer, done)  # without those cancelled meanwhile

    def _observe(self, step: LaunchedStep) -> float | None:
        """Milliseconds that the step took; None if it did not run as it was planned."""
        took_ms = [self._wait(part) for part in step.parts]
        observed_ms = took_ms[0] if len(took_ms) == 1 else None
        self._observer.step_finished(step.launch, observed_ms)
        return observed_ms

    def _wait(self, part: LaunchedPart) -> float | None:
        try:
            return part.running.wait()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail(part.request_ids, error, "step")
            return None

    # The encoders' threads

    def _delivered(self, image: AcceptedImage, file: bytes) -> None:
        with self._changed:
            now_s = self._clock.now()
            self._expire(now_s)
            if self._images.pop(image.request_id, None) is None:
                return  # its caller left, or was told of something else
            self._scheduler.delivered(image.request_id, now_s)
            self._scheduler.forget(image.request_id)
            image.outcome = image.outcome_of(file, now_s)
            request = image.request
            outcomes = [sibling.outcome for sibling in request.images if sibling.outcome is not None]
            if len(outcomes) == len(request.images):
                resolve(request.future, Outcome(job=request.job, images=tuple(outcomes)))
            self._changed.notify_all()

    # Any thread

    def _check_accepting(self) -> None:
        """The lock is held."""
        if not self._accepts:
            raise EngineStopped("the engine takes no more work")

    def _admit(self, request: AcceptedRequest, now_s: float) -> Refusal | None:
        """Takes a request if the scheduler does. The lock is held."""
        demands = [request.job.demand(image.request_id) for image in request.images]
        refusal = self._scheduler.submit(demands, now_s)
        if refusal is None:
            self._room_s.clear()
            self._images.update({image.request_id: image for image in request.images})
            self._changed.notify_all()
        return refusal

    def _known_error(self, refusal: Refusal, asked: Asked, now_s: float) -> ElitError | None:
        """What a refused caller is told, if nothing need be found out for it. The lock is held."""
        if refusal.min_latency_ms is not None:
            return infeasible(asked, refusal.min_latency_ms, refusal.pace)
        room_s = self._room_s.get(len(asked.job.seeds), now_s)
        is_known = refusal.reason == FULL.reason and room_s > now_s
        return Overloaded(refusal.reason, room_s - now_s) if is_known else None

    def _overloaded(self, refusal: Refusal, asked: Asked, scheduler: RequestScheduler, now_s: float) -> Overloaded:
        """What a caller is told whom others are in the way of. Without the lock, as it takes some milliseconds: for a
        full queue, which may refuse hundreds in a second, the answer is kept until somebody is taken."""
        error = overloaded(refusal, asked, scheduler, now_s)
        if refusal.reason == FULL.reason:
            self._room_s[len(asked.job.seeds)] = now_s + error.retry_after_s
        return error

    def _expire(self, now_s: float) -> None:
        """Ends what has missed its promise. The lock is held."""
        for request_id in self._scheduler.expire(now_s):
            if request_id in self._images:  # unless it has just ended with another image of its request
                request = self._images[request_id].request
                self._end(request, DeadlineExceeded(request.job.latency_ms))

    def _fail(self, request_ids: Iterable[int], error: Exception, cause: str) -> None:
        """Ends the requests of these images, as far as they have not ended."""
        with self._changed:
            images = [self._images[request_id] for request_id in request_ids if request_id in self._images]
            if not images:
                return
            self._scheduler.failed([image.request_id for image in images], self._clock.now())
            for request in {image.request for image in images}:
                self._end(request, _failure(error))
        self._observer.images_failed(cause, len(images))
        known = isinstance(error, ElitError)  # then its text says it all
        logger.warning("%d images failed (%s): %s", len(images), cause, error, exc_info=None if known else error)

    def _give_up(self, request: AcceptedRequest) -> None:
        """For a caller who has left."""
        with self._changed:
            self._end(request, None)

    def _end(self, request: AcceptedRequest, error: ElitError | None) -> None:
        """Takes a request out of everything and tells its caller why. The lock is held."""
        now_s = self._clock.now()
        for image in request.images:
            if self._images.pop(image.request_id, None) is not None:
                self._scheduler.cancel(image.request_id, now_s)  # nothing happens to one that has failed or expired
                self._scheduler.forget(image.request_id)
                self._vacated.append(image.request_id)
        if error is not None:
            resolve(request.future, error)
        self._changed.notify_all()

    def _close(self) -> None:
        """Takes nothing any more; nobody may wait for ever."""
        with self._changed:
            self._stopping, self._accepts = True, False
            for request in {image.request for image in self._images.values()}:
                self._end(request, EngineStopped("the engine stopped before this request was done"))
        self._is_ready.set()
        self._encoders.close()


def _failure(error: Exception) -> ElitError:
    return error if isinstance(error, ElitError) else GenerationFailed(f"the engine failed with {type(error).__name__}")
