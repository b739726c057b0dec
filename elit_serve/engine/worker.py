"""The only loop: it drives scheduler and executor, and alone touches the device. Knows nothing of HTTP.

Three kinds of threads meet here. Callers submit jobs and get a future at once; cancelling the future gives the job
up. The worker's thread turns the loop: one step decided and launched, one step finished. A pool decodes and encodes
what is finished, while the next step runs. They share the scheduler and the table of images in flight under one lock,
which nobody holds while waiting for the device.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch import Tensor

from elit_serve.clock import Clock
from elit_serve.engine.encoding import answer_formats, encode_sample
from elit_serve.engine.executor import Executor, ImageTask, RunningStep, Transfer
from elit_serve.engine.foresight import Foresight, error_of, foresee
from elit_serve.engine.jobs import ImageOutcome, Job, Outcome, Preview
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import (
    DeadlineExceeded,
    ElitError,
    EngineStopped,
    GenerationFailed,
    Overloaded,
)
from elit_serve.sampling import Guidance
from elit_serve.scheduler.core import Counters, RequestScheduler
from elit_serve.scheduler.requests import Launch, Wait

logger = logging.getLogger(__name__)

MAX_ENCODERS = 8  # threads
SLOTS_RETRY_AFTER_S = 1.0  # a slot is free again whenever any image is finished
LEAD_S = 0.0015  # a launch is enqueued this long before the device is expected to be free: deciding and enqueueing
LEAD_SHARE = 0.03  # plus this share of the running step, because it may end early
POLL_S = 0.002  # and so often it is looked whether it has, for steps that take much less than was predicted


_Samples = list[Tensor | GenerationFailed]


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
        self._running: deque[_Step] = deque()  # launched and not finished; the worker's thread only
        self._free_s = 0.0  # when the device has done all of these, as predicted
        self._request_ids = count()
        self._images: dict[int, _Image] = {}  # accepted and not ended
        self._vacated: list[int] = []  # ended images whose slots are still to be freed
        self._changed = threading.Condition()
        self._accepts = True
        self._is_ready = threading.Event()
        self._stopping = False
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, name="elit-worker", daemon=True)
        encoders = min(MAX_ENCODERS, os.cpu_count() or 1)
        self._encoders = ThreadPoolExecutor(encoders, thread_name_prefix="elit-encoder")

    @property
    def is_alive(self) -> bool:
        """Whether jobs are being run."""
        return self._thread.is_alive() and not self._stopping

    @property
    def ended(self) -> Future[None]:
        """Done once the loop has ended and everybody was told; it has the exception of which the loop died, if any."""
        return self._ended

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
        """Accepted images of which no step has run."""
        with self._changed:
            return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Images between their first and their last step."""
        with self._changed:
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
            return self._scheduler.correction

    def start(self) -> None:
        self._thread.start()

    def wait_until_ready(self) -> None:
        """Returns once the device is warm, or the worker is dead."""
        self._is_ready.wait()

    def submit(
        self, job: Job, open_plans: OpenPlans | None = None, on_preview: Callable[[Preview], None] | None = None
    ) -> Future[Outcome]:
        """Takes a job, also before the start; cancelling its future gives it up within a step.

        With `open_plans` the job gets one of these plans in place of its own. `on_preview` is given the previews that
        it asks for, on a thread of the encoders', each image's in order and before its outcome; it must not wait.
        Raises `Infeasible` or `Overloaded` as the scheduler refuses it, and `EngineStopped` once no more is taken.
        """
        with self._changed:
            self._check_room(len(job.seeds))
            given = job if open_plans is None else open_plans.give(job, self._scheduler)
            request = _Request(given, Future(), on_preview)
            request.images = [_Image(request, index, next(self._request_ids)) for index in range(len(job.seeds))]
            self._admit(request)
            self._images.update({image.request_id: image for image in request.images})
            self._changed.notify_all()
        request.future.add_done_callback(lambda future: self._give_up(request) if future.cancelled() else None)
        return request.future

    def foresee(self, job: Job, open_plans: OpenPlans | None = None) -> Foresight:
        """What `submit` would do with this job now, and how it would go on; takes nothing and changes nothing.

        Raises `EngineStopped` once no more is taken.
        """
        with self._changed:
            self._check_room(len(job.seeds))
            scheduler, now_s = self._scheduler.copy(), self._clock.now()
        return foresee(job, open_plans, scheduler, now_s)

    def drain(self, timeout_s: float) -> None:
        """Takes no more jobs, finishes the accepted ones if they are done within `timeout_s`, and stops."""
        with self._changed:
            self._accepts = False
            self._changed.wait_for(lambda: self._stopping or not self._images, timeout_s)
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
        death: BaseException | None = None
        try:
            self._warm_up()
            self._is_ready.set()
            while not self._stopping:
                self._turn()
        except BaseException as error:
            logger.critical("the worker died", exc_info=True)
            death = error
        self._close()
        if death is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(death)

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

    def _decide(self) -> tuple[Launch | Wait, list[_Image]]:
        """The next launch and its members. If there is nothing at all to do, waits for something to change."""
        with self._changed:
            now_s = self._clock.now()
            self._expire(now_s)
            decision = self._scheduler.decide(max(now_s, self._free_s) if self._running else now_s)
            if isinstance(decision, Launch):
                members = [self._images[request_id] for request_id in decision.request_ids]
            else:
                members = []
                if not (self._running or self._vacated or self._stopping):
                    self._changed.wait(None if decision.until_s is None else max(0.0, decision.until_s - now_s))
            vacated, self._vacated = self._vacated, []
        for request_id in vacated:
            self._executor.remove(request_id)
        return decision, members

    def _launch(self, launch: Launch, members: Sequence[_Image]) -> None:
        start_s = max(self._clock.now(), self._free_s if self._running else 0.0)
        for image in members:
            if image.started_s is None:
                image.started_s = start_s
                self._executor.add(image.task)
        parts = self._launch_parts(launch, {image.request_id: image for image in members})
        self._running.append(_Step(launch, tuple(parts)))
        self._free_s = start_s + launch.predicted_ms / 1000

    def _launch_parts(self, launch: Launch, members: dict[int, _Image]) -> list[_Part]:
        """Launches all at once or, if memory does not suffice, in halves. What cannot be run fails alone."""
        previewed = [image for image in members.values() if image.is_previewed_next]
        try:
            if previewed:
                self._executor.watch([image.request_id for image in previewed])
            running = self._executor.launch(launch)
        except torch.AcceleratorError:
            raise  # the device is lost, and everything on it
        except Exception as error:
            failure = error
        else:
            for request_id in launch.request_ids:
                members[request_id].levels.append(launch.level)
            last = [members[request_id] for request_id in launch.request_ids if members[request_id].is_complete]
            self._show_all(previewed)
            return [_Part(launch.request_ids, running, tuple(last), self._collect(last))]
        half = len(launch.request_ids) // 2
        if half and isinstance(failure, torch.OutOfMemoryError):
            return self._launch_halves(launch, half, members)
        self._fail(launch.request_ids, failure, _cause(failure))
        return []

    def _launch_halves(self, launch: Launch, half: int, members: dict[int, _Image]) -> list[_Part]:
        logger.warning("a batch of %d does not fit into memory; at most %d from now on", 2 * half, half)
        with self._changed:
            self._scheduler.limit_batch(half)
        halves = (launch.request_ids[:half], launch.request_ids[half:])
        return [part for ids in halves for part in self._launch_parts(replace(launch, request_ids=ids), members)]

    def _collect(self, images: Sequence[_Image]) -> Transfer | None:
        """Enqueues decoding right behind the last step, so that it need not wait for the step after that."""
        if not images:
            return None
        try:
            return self._executor.collect([image.request_id for image in images])
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail([image.request_id for image in images], error, _cause(error))
            return None

    def _show_all(self, images: Sequence[_Image]) -> None:
        """Enqueues previews right behind the step; there is none where something goes wrong with it."""
        if not images:
            return
        try:
            transfer = self._executor.preview([image.request_id for image in images])
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.warning("no preview of %d images", len(images), exc_info=True)
            return
        samples = self._encoders.submit(transfer.result)
        for index, image in enumerate(images):
            num_steps = len(image.levels)
            image.shown = self._encoders.submit(self._show, image, samples, index, num_steps, image.shown)

    def _finish(self, step: _Step) -> None:
        """Waits for a step, and hands what it finished to the encoders."""
        observed_ms = self._observe(step)
        with self._changed:
            now_s = self._clock.now()
            done = self._scheduler.finished(step.launch.launch_id, now_s, observed_ms)
        self._free_s = now_s + sum(later.launch.predicted_ms for later in self._running) / 1000
        for part in step.parts:
            if part.transfer is not None:
                self._deliver_all(part.last, part.transfer, done, now_s)

    def _deliver_all(self, images: Sequence[_Image], transfer: Transfer, done: Collection[int], ended_s: float) -> None:
        samples = self._encoders.submit(transfer.result)
        for index, image in enumerate(images):
            if image.request_id in done:  # it has not been cancelled meanwhile
                image.ended_s = ended_s
                # the pool is first in, first out, so that none waits for what comes after it
                self._encoders.submit(self._deliver, image, samples, index)

    def _observe(self, step: _Step) -> float | None:
        """Milliseconds that the step took; None if it did not run as it was planned."""
        took_ms = [self._wait(part) for part in step.parts]
        observed_ms = took_ms[0] if len(took_ms) == 1 else None
        self._observer.step_finished(step.launch, observed_ms)
        return observed_ms

    def _wait(self, part: _Part) -> float | None:
        try:
            return part.running.wait()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail(part.request_ids, error, "step")
            return None

    def _warm_up(self) -> None:
        """One step, its decoding and every encoder, so that the first caller need not wait for it."""
        plan = self._pipeline.plan(steps=1)
        level, request_id = plan.levels[0], next(self._request_ids)
        noise = torch.zeros(self._pipeline.config.spec.sample_shape)
        task = ImageTask(
            request_id=request_id, class_id=0, num_steps=1, guidance=Guidance(), time_shift=plan.time_shift, noise=noise
        )
        launch = Launch(launch_id=-1, request_ids=(request_id,), level=level, weak_cap=None, predicted_ms=0.0)
        try:
            self._executor.add(task)
            self._executor.launch(launch).wait()
            (sample,) = self._executor.collect([request_id]).result()
            if isinstance(sample, GenerationFailed):
                raise sample
            for output_format in answer_formats(self._pipeline.is_latent):
                encode_sample(sample, output_format, {})
        except torch.AcceleratorError:
            raise
        except Exception:
            logger.warning("the warm-up failed; the first request will show more", exc_info=True)
            self._executor.remove(request_id)

    # The encoders' threads

    def _show(
        self, image: _Image, samples: Future[_Samples], index: int, num_steps: int, before: Future[None] | None
    ) -> None:
        """before: the image's last preview, which must be out first; the pool is first in, first out."""
        job = image.request.job
        try:
            sample = samples.result()[index]
            if isinstance(sample, GenerationFailed):
                return
            file = encode_sample(sample, job.output_format, {"preview_after_steps": num_steps}, job.file_quality)
            if before is not None:
                before.result()
            number = job.preview_steps.index(num_steps)
            image.request.on_preview(Preview(file=file, seed=image.seed, index=number, num_steps=num_steps))
        except Exception:
            logger.warning("a preview could not be shown", exc_info=True)

    def _deliver(self, image: _Image, samples: Future[_Samples], index: int) -> None:
        job, levels = image.request.job, tuple(image.levels)
        try:
            sample = samples.result()[index]
            if isinstance(sample, GenerationFailed):
                self._fail([image.request_id], sample, "nan")
                return
            facts = self._pipeline.facts(job.class_id, image.seed, job.plan(levels))
            file = encode_sample(sample, job.output_format, facts, job.file_quality)
            if image.shown is not None:
                image.shown.result()
        except Exception as error:
            self._fail([image.request_id], error, "encoding")
            return
        with self._changed:
            now_s = self._clock.now()
            self._expire(now_s)
            if self._images.pop(image.request_id, None) is None:
                return  # its caller left, or was told of something else
            self._scheduler.delivered(image.request_id, now_s)
            self._scheduler.forget(image.request_id)
            image.outcome = image.outcome_of(file, now_s)
            outcomes = [sibling.outcome for sibling in image.request.images if sibling.outcome is not None]
            if len(outcomes) == len(job.seeds):
                _resolve(image.request.future, Outcome(job=job, images=tuple(outcomes)))
            self._changed.notify_all()

    # Any thread

    def _check_room(self, num_images: int) -> None:
        """Whether so many images more may be in flight. The lock is held."""
        if not self._accepts:
            raise EngineStopped("the engine takes no more work")
        if len(self._images) + num_images > self._executor.num_slots:
            raise Overloaded("queue_full", SLOTS_RETRY_AFTER_S)

    def _admit(self, request: _Request) -> None:
        """Asks the scheduler. The lock is held."""
        demands = [request.job.demand(image.request_id) for image in request.images]
        refusal = self._scheduler.submit(demands, self._clock.now())
        if refusal is not None:
            raise error_of(refusal, request.job.latency_ms)

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

    def _give_up(self, request: _Request) -> None:
        """For a caller who has left."""
        with self._changed:
            self._end(request, None)

    def _end(self, request: _Request, error: ElitError | None) -> None:
        """Takes a request out of everything and tells its caller why. The lock is held."""
        now_s = self._clock.now()
        for image in request.images:
            if self._images.pop(image.request_id, None) is not None:
                self._scheduler.cancel(image.request_id, now_s)  # nothing happens to one that has failed or expired
                self._scheduler.forget(image.request_id)
                self._vacated.append(image.request_id)
        if error is not None:
            _resolve(request.future, error)
        self._changed.notify_all()

    def _close(self) -> None:
        """Takes nothing any more; nobody may wait for ever."""
        with self._changed:
            self._stopping, self._accepts = True, False
            for request in {image.request for image in self._images.values()}:
                self._end(request, EngineStopped("the engine stopped before this request was done"))
        self._is_ready.set()
        self._encoders.shutdown(wait=False, cancel_futures=True)


class _Request:
    """A job in flight."""

    def __init__(self, job: Job, future: Future[Outcome], on_preview: Callable[[Preview], None] | None) -> None:
        self.job = job
        self.future = future
        self.on_preview = on_preview or (lambda _: None)
        self.preview_steps = frozenset(job.preview_steps) if on_preview is not None else frozenset()
        self.images: list[_Image] = []


class _Image:
    """An image in flight. Levels and times are written by the worker's thread, before the encoders read them."""

    def __init__(self, request: _Request, index: int, request_id: int) -> None:
        self.request = request
        self.request_id = request_id
        self.seed = request.job.seeds[index]
        self.task = request.job.task(request_id, index)
        self.levels: list[int] = []
        self.started_s: float | None = None
        self.ended_s: float | None = None
        self.outcome: ImageOutcome | None = None
        self.shown: Future[None] | None = None  # the last preview

    @property
    def is_previewed_next(self) -> bool:
        return len(self.levels) + 1 in self.request.preview_steps

    @property
    def is_complete(self) -> bool:
        return len(self.levels) == self.task.num_steps

    def outcome_of(self, file: bytes, delivered_s: float) -> ImageOutcome:
        assert self.started_s is not None
        assert self.ended_s is not None
        return ImageOutcome(
            file=file,
            seed=self.seed,
            levels=tuple(self.levels),
            queue_ms=1000 * (self.started_s - self.request.job.arrived_s),
            compute_ms=1000 * (self.ended_s - self.started_s),
            encode_ms=1000 * (delivered_s - self.ended_s),
        )


@dataclass(frozen=True)
class _Part:
    """Members of a launch that run together: all of them, but where memory did not suffice.

    last: those whose last step it is; their samples are in `transfer`, in the same order.
    """

    request_ids: tuple[int, ...]
    running: RunningStep
    last: tuple[_Image, ...]
    transfer: Transfer | None


@dataclass(frozen=True)
class _Step:
    launch: Launch
    parts: tuple[_Part, ...]

    def is_done(self) -> bool:
        return all(part.running.is_done() for part in self.parts)


def _resolve(future: Future[Outcome], result: Outcome | ElitError) -> None:
    """Tells a caller, unless he has left."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(result, Outcome):
        future.set_result(result)
    else:
        future.set_exception(result)


def _cause(error: Exception) -> str:
    return "memory" if isinstance(error, torch.OutOfMemoryError) else "step"


def _failure(error: Exception) -> ElitError:
    return error if isinstance(error, ElitError) else GenerationFailed(f"the engine failed with {type(error).__name__}")
