"""The only loop: it drives scheduler and executor, and alone touches the device. Knows nothing of HTTP.

Three kinds of threads meet here. Callers submit orders and get a future at once; cancelling the future gives the order
up. The worker's thread turns the loop: one step decided and launched, one step finished; what a step completes is
decoded right behind it. A pool waits for that and encodes it, while the next step runs. They share the scheduler and
the table of pictures in flight under one lock, which nobody holds while waiting for the device.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from itertools import count

import torch

from elit_serve.clock import Clock
from elit_serve.engine.cost import Cost
from elit_serve.engine.encoders import EncoderOptions, Encoders
from elit_serve.engine.executor.slots import AnyExecutor
from elit_serve.engine.forecast import FULL, Forecast, forecast, has_room, infeasible, overloaded
from elit_serve.engine.in_flight import InFlight
from elit_serve.engine.launcher import LaunchedPart, Launcher
from elit_serve.engine.maker import ReplicaState
from elit_serve.engine.observer import Observer
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Caller, Outcome, Picture, Preview, StepRun
from elit_serve.engine.served_model import ServedModel
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
from elit_serve.scheduler.requests import Launch, Refusal
from elit_serve.scheduler.routing import Digest, digest_of

logger = logging.getLogger(__name__)

LEAD_S = 0.0015  # a launch is enqueued this long before the device is expected to be free: deciding and enqueueing
LEAD_SHARE = 0.03  # plus this share of the running step, because it may end early
POLL_S = 0.002  # and so often it is looked whether it has, for steps that take much less than was predicted


class Worker:
    """Makes the pictures of orders on one executor, as the scheduler decides.

    Accepted pictures that are not done, waiting ones included, are never more than the executor has slots, so whatever
    the scheduler decides there is a slot for everybody; a picture takes its slot when its first step is launched.
    """

    def __init__(
        self,
        pipeline: ServedModel,
        executor: AnyExecutor,
        scheduler: RequestScheduler,
        *,
        clock: Clock,
        observer: Observer | None = None,
        encoders: EncoderOptions | None = None,
        text_ms: float = 0.0,
    ) -> None:
        """text_ms: what the device takes to encode a prompt that it does not know."""
        self._pipeline = pipeline
        self._executor = executor
        self._scheduler = scheduler
        self._clock = clock
        self._text_ms = text_ms
        self._observer = observer or Observer()
        self._depth = 2 if executor.is_asynchronous else 1
        self._running: deque[tuple[Launch, list[LaunchedPart]]] = deque()  # and not finished; the worker's thread only
        self._free_s = 0.0  # when the device has done all of these, as predicted
        self._ended_s: float | None = None  # when the step before was done and decoded; None if nothing was left to do
        self._picture_ids = count()
        self._digests = count()
        self._pictures: dict[int, Picture] = {}  # accepted and not ended
        self._room_s: dict[int, float] = {}  # when a full queue will have room for so many, as far as is known
        self._vacated: list[Picture] = []  # ended, with slots that are still to be freed
        self._changed = threading.Condition()
        self._accepts = True
        self._is_ready = threading.Event()
        self._stopping = False
        self._ended: Future[None] = Future()
        self._has_died = False
        self._thread = threading.Thread(target=self._run, name="elit-worker", daemon=True)
        self._encoders = Encoders(
            pipeline,
            encoders or EncoderOptions(),
            on_previewed=self._share_time,
            on_decoded=self._decoded,
            on_file=self._delivered,
            on_failure=self._fail,
        )
        self._launcher = Launcher(executor, self._encoders, on_failure=self._fail, on_small_memory=self._limit_batch)

    @property
    def is_alive(self) -> bool:
        """Whether pictures are being made."""
        return self._thread.is_alive() and not self._stopping

    @property
    def ended(self) -> Future[None]:
        """Done once the loop has ended, for whatever reason, and everybody was told."""
        return self._ended

    @property
    def has_died(self) -> bool:
        """Whether the loop ended by an error. So it says when orders that were not done fail with `EngineStopped`."""
        return self._has_died

    @property
    def is_ready(self) -> bool:
        """Whether new orders are taken and run without delay: warm, not draining, alive."""
        return self._is_ready.is_set() and self._accepts and self.is_alive

    @property
    def is_draining(self) -> bool:
        """Whether no more orders are taken."""
        return not self._accepts

    @property
    def num_devices(self) -> int:
        return 1

    @property
    def replicas(self) -> Mapping[str, ReplicaState]:
        return {}

    @property
    def num_submitters(self) -> int:
        """They would take turns at its lock, and with its thread at the interpreter's."""
        return 1

    @property
    def num_waiting(self) -> int:
        """Accepted pictures of which no step has run. Without the lock, for whoever may not wait for it."""
        return self._scheduler.num_waiting

    @property
    def num_running(self) -> int:
        """Pictures between their first and their last step; read as the above."""
        return self._scheduler.num_running

    def waiting_by_owner(self) -> Counter[str]:
        """How many accepted pictures of which no step has run each owner has; those of nobody do not count."""
        with self._changed:
            owners = [each.caller.order.owner for each in self._pictures.values() if each.started_s is None]
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
        order: Order,
        on_preview: Callable[[Preview], None] | None = None,
        on_step: Callable[[StepRun], None] | None = None,
        *,
        is_passed_on: bool = False,
    ) -> Future[Outcome]:
        """Takes an order, also before the start; cancelling its future gives it up within a step.

        `on_preview` is given the previews that it asks for, on a thread of the encoders', each picture's in order and
        before its outcome; `on_step` is told of every step that has run, on the worker's thread. Neither may wait or
        raise. Raises `Infeasible` or `Overloaded` as the scheduler refuses it, and `EngineStopped` once no more is
        taken. is_passed_on: see `RequestScheduler.submit`.
        """
        order = self._prepared(order)
        shape = self._pipeline.shape_named(order.shape)
        noise = self._pipeline.noise(order.seeds, shape)  # here, so that the worker's thread need not
        with self._changed:
            self._check_accepting()
            now_s = self._clock.now()
            caller = Caller(order.given(self._scheduler, now_s), noise, on_preview, on_step)
            has_slots = has_room(order, self._executor.num_slots, len(self._pictures))
            refusal = self._admit(caller, now_s, is_passed_on) if has_slots else FULL
            known = None if refusal is None else self._known_error(refusal, order, now_s)
            scheduler = self._scheduler if refusal is None or known else self._scheduler.copy()
        if refusal is not None:
            raise known or self._overloaded(refusal, order, scheduler, now_s)
        caller.future.add_done_callback(lambda future: self._give_up(caller) if future.cancelled() else None)
        return caller.future

    def hurry(self, future: Future[Outcome]) -> bool:
        """Has the pictures of an order that was taken end with the fewest steps that their state allows. False if no
        step of them has run, or they have ended."""
        with self._changed:
            left = [picture for picture in self._pictures.values() if picture.caller.future is future]
            if not left or all(picture.started_s is None for picture in left[0].caller.pictures):
                return False
            left[0].caller.is_hurried = True
            now_s = self._clock.now()
            for picture in left:
                self._scheduler.hurry(picture.picture_id, now_s)
        return True

    def forecast(self, order: Order) -> Forecast:
        """What `submit` would do with this order now, and how it would go on; takes nothing and changes nothing.

        Raises `EngineStopped` once no more is taken.
        """
        with self._changed:
            self._check_accepting()
            scheduler, now_s = self._scheduler.copy(), self._clock.now()
        return forecast(self._prepared(order), self._executor.num_slots, scheduler, now_s)

    def in_flight(self, max_pictures: int) -> InFlight:
        """What is being made now, and what was counted. Holds the lock for a few microseconds."""
        with self._changed:
            pictures = list(self._pictures.values())
            return InFlight.of(pictures, self._scheduler, self._clock.now(), max_pictures=max_pictures)

    def digest(self, device: str) -> Digest:
        """What a router of orders is told now. device: the kind of device, by the name that the router has for it.
        Holds the lock for well under a millisecond."""
        with self._changed:
            return digest_of(self._scheduler, self._clock.now(), number=next(self._digests), device=device)

    def drain(self, timeout_s: float) -> None:
        """Takes no more orders, finishes the accepted ones if they are done within `timeout_s`, and stops."""
        with self._changed:
            self._accepts = False
            self._changed.wait_for(lambda: self._stopping or not self._pictures, min(timeout_s, threading.TIMEOUT_MAX))
        self.stop()

    def stop(self) -> None:
        """Ends the loop after the step that runs; orders that are not done fail with `EngineStopped`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        self._close()

    # The worker's thread

    def _run(self) -> None:
        try:
            warm_up(self._executor, self._pipeline, next(self._picture_ids))
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
        if len(self._running) == self._depth or (self._running and decision is None):
            self._finish(*self._running.popleft())

    def _sleep_until_almost_free(self) -> None:
        """The later a step is decided, the more arrivals may join it; but the device must not wait for it."""
        if not self._running:
            return
        launch, parts = self._running[0]
        due_s = self._free_s - LEAD_S - LEAD_SHARE * launch.device_ms / 1000
        while not _are_done(parts) and (left_s := due_s - self._clock.now()) > 0:
            time.sleep(min(left_s, POLL_S))
        if _are_done(parts):
            self._free_s = self._clock.now()

    def _decide(self) -> tuple[Launch | None, list[Picture]]:
        """The next launch and its members. If there is nothing at all to do, waits for something to change."""
        with self._changed:
            now_s = self._clock.now()
            self._expire(now_s)
            decision = self._scheduler.decide(max(now_s, self._free_s) if self._running else now_s)
            self._log_defects()
            if isinstance(decision, Launch):
                members = [self._pictures[request_id] for request_id in decision.request_ids]
            else:
                members = []
                if not (self._running or self._vacated or self._stopping):
                    self._ended_s = None
                    self._changed.wait()
            vacated, self._vacated = self._vacated, []
        for picture in vacated:
            self._executor.remove(picture)
        return decision, members

    def _log_defects(self) -> None:
        """Of the scheduler, each with the state from which `scheduler.replay.from_text` makes it again."""
        while (defect := self._scheduler.take_defect()) is not None:
            state = as_text(defect.scheduler)
            logger.error("a decision failed, and was made by the fixed policy: state %s", state, exc_info=defect.error)

    def _launch(self, launch: Launch, members: Sequence[Picture]) -> None:
        start_s = max(self._clock.now(), self._free_s if self._running else 0.0)
        for picture in members:
            picture.started_s = start_s if picture.started_s is None else picture.started_s
        self._running.append((launch, self._launcher.launch(members, launch.kind)))
        self._free_s = start_s + launch.device_ms / 1000

    def _limit_batch(self, max_batch: int) -> None:
        with self._changed:
            self._scheduler.limit_batch(max_batch)

    def _finish(self, launch: Launch, parts: Sequence[LaunchedPart]) -> None:
        """Waits for a step, and hands what it finished to the encoders."""
        took_ms = [self._wait(part) for part in parts]
        observed_ms = took_ms[0] if len(took_ms) == 1 else None  # else it did not run as it was planned
        with self._changed:
            now_s = self._clock.now()
            has_decoded = not self._executor.is_asynchronous
            gap_ms = None if launch.prepare_ms else self._gap_ms(now_s, observed_ms)
            done = self._scheduler.finished(
                launch.launch_id, now_s, observed_ms, gap_ms=gap_ms, has_decoded=has_decoded
            )
        self._observer.step_finished(launch, observed_ms, gap_ms)
        decode_ms = 0.0 if has_decoded else launch.decode_ms
        self._ended_s = now_s + decode_ms / 1000
        self._free_s = now_s + (decode_ms + sum(later.device_ms for later, _ in self._running)) / 1000
        kinds = map(launch.kind.of_member, launch.levels)
        flops = dict(zip(launch.request_ids, map(self._pipeline.step_flops, kinds), strict=True))
        for part, part_ms in zip(parts, took_ms, strict=True):
            if part_ms is not None:
                self._share_time(part.pictures, part_ms, flops)
            for tell, step_run in part.watched if part_ms is not None else ():
                tell(step_run)
            for picture in part.last:
                picture.ended_s = now_s
            if part.transfer is not None:
                self._encoders.encode(part.last, part.transfer, done)  # without those cancelled meanwhile

    def _gap_ms(self, now_s: float, observed_ms: float | None) -> float | None:
        """For how long the device had nothing to run before the step that has ended now, though there was work."""
        if self._ended_s is None or observed_ms is None:
            return None
        return 1000 * (now_s - self._ended_s) - observed_ms

    def _wait(self, part: LaunchedPart) -> float | None:
        """Milliseconds that it took on the device; None if it has failed."""
        try:
            return part.running.wait()
        except torch.AcceleratorError:
            raise
        except Exception as error:
            self._fail(part.pictures, error, "step")
            return None

    def _share_time(self, members: Sequence[Picture], took_ms: float, flops: Mapping[int, float] | None = None) -> None:
        """Of what these did together on the device. flops: of each, by id; without them there were none."""
        each_ms, flops = took_ms / len(members), flops or {}
        costs = [Cost(flops=flops.get(picture.picture_id, 0.0), device_ms=each_ms) for picture in members]
        for picture, cost in zip(members, costs, strict=True):
            picture.spend(cost)
        self._observer.spent([picture.caller.order.owner for picture in members], costs)

    # The encoders' threads

    def _decoded(self, pictures: Sequence[Picture], took_ms: float) -> None:
        self._observer.images_decoded(took_ms)
        self._share_time(pictures, took_ms)

    def _delivered(self, picture: Picture, file: bytes) -> None:
        with self._changed:
            now_s = self._clock.now()
            self._expire(now_s)
            if self._pictures.pop(picture.picture_id, None) is None:
                return  # its caller left, or was told of something else
            self._scheduler.delivered(picture.picture_id, now_s)
            self._scheduler.forget(picture.picture_id)
            picture.file, picture.delivered_s = file, now_s
            caller = picture.caller
            if all(sibling.delivered_s is not None for sibling in caller.pictures):
                pictures = tuple(each.made() for each in caller.pictures)
                caller.tell(Outcome(order=caller.order, pictures=pictures, is_hurried=caller.is_hurried))
            self._changed.notify_all()

    # Any thread

    def _prepared(self, order: Order) -> Order:
        """With what is to be done for it first."""
        prepare_ms = self._text_ms * self._pipeline.conditions.num_unknown(order.condition)
        return replace(order, prepare_ms=prepare_ms) if prepare_ms else order

    def _check_accepting(self) -> None:
        """The lock is held."""
        if not self._accepts:
            raise EngineStopped("the engine takes no more work")

    def _admit(self, caller: Caller, now_s: float, is_passed_on: bool) -> Refusal | None:
        """Takes an order if the scheduler does. The lock is held."""
        ids = [next(self._picture_ids) for _ in caller.order.seeds]
        demands = caller.order.demands(ids)
        refusal = self._scheduler.submit(demands, now_s, is_passed_on=is_passed_on)
        if refusal is None:
            self._room_s.clear()
            for picture_id in ids:
                self._pictures[picture_id] = caller.add(picture_id, self._scheduler.progress_of(picture_id))
            self._changed.notify_all()
        return refusal

    def _known_error(self, refusal: Refusal, order: Order, now_s: float) -> ElitError | None:
        """What a refused caller is told, if nothing need be found out for it. The lock is held."""
        if refusal.min_latency_ms is not None:
            return infeasible(order, refusal.min_latency_ms, refusal.pace)
        room_s = self._room_s.get(len(order.seeds), now_s)
        is_known = refusal.reason == FULL.reason and room_s > now_s
        return Overloaded(refusal.reason, room_s - now_s) if is_known else None

    def _overloaded(self, refusal: Refusal, order: Order, scheduler: RequestScheduler, now_s: float) -> Overloaded:
        """What a caller is told whom others are in the way of. Without the lock, as it takes some milliseconds: for a
        full queue, which may refuse hundreds in a second, the answer is kept until somebody is taken."""
        error = overloaded(refusal, order, self._executor.num_slots, scheduler, now_s)
        if refusal.reason == FULL.reason:
            self._room_s[len(order.seeds)] = now_s + error.retry_after_s
        return error

    def _expire(self, now_s: float) -> None:
        """Ends what has missed its promise. The lock is held."""
        for picture_id in self._scheduler.expire(now_s):
            if picture_id in self._pictures:  # unless it has just ended with another picture of its order
                caller = self._pictures[picture_id].caller
                self._end(caller, DeadlineExceeded(caller.order.latency_ms))

    def _fail(self, pictures: Sequence[Picture], error: Exception, cause: str) -> None:
        """Ends the orders of these, as far as they have not ended."""
        with self._changed:
            failed = [picture for picture in pictures if picture.picture_id in self._pictures]
            if not failed:
                return
            self._scheduler.failed([picture.picture_id for picture in failed], self._clock.now())
            for caller in {picture.caller for picture in failed}:
                self._end(caller, _failure(error))
        self._observer.images_failed(cause, len(failed))
        known = isinstance(error, ElitError)  # then its text says it all
        logger.warning("%d images failed (%s): %s", len(failed), cause, error, exc_info=None if known else error)

    def _give_up(self, caller: Caller) -> None:
        """Whoever asked has left, so nobody wants any picture of the order."""
        with self._changed:
            self._end(caller, None)

    def _end(self, caller: Caller, error: ElitError | None) -> None:
        """Takes an order out of everything and tells its caller why. The lock is held."""
        now_s = self._clock.now()
        for picture in caller.pictures:
            if self._pictures.pop(picture.picture_id, None) is not None:
                self._scheduler.cancel(picture.picture_id, now_s)  # nothing happens to one that has failed or expired
                self._scheduler.forget(picture.picture_id)
                self._vacated.append(picture)
        if error is not None:
            caller.tell(error)
        self._changed.notify_all()

    def _close(self) -> None:
        """Takes nothing any more; nobody may wait for ever."""
        with self._changed:
            self._stopping, self._accepts = True, False
            for caller in {picture.caller for picture in self._pictures.values()}:
                self._end(caller, EngineStopped("the engine stopped before this request was done"))
        self._is_ready.set()
        self._encoders.close()


def _are_done(parts: Sequence[LaunchedPart]) -> bool:
    return all(part.running.is_done() for part in parts)


def _failure(error: Exception) -> ElitError:
    return error if isinstance(error, ElitError) else GenerationFailed(f"the engine failed with {type(error).__name__}")
