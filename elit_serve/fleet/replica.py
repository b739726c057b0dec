"""A replica: one engine on one device, without HTTP. It alone promises; who asks it is in other processes.

Knows nothing of Ray, which calls its methods; each is a coroutine on one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import ParamSpec, TypeVar

from elit_serve.clock import Clock
from elit_serve.engine.cost import Cost
from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.engine.observer import Observer
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome
from elit_serve.engine.worker import Worker
from elit_serve.errors import ElitError, EngineStopped, GenerationFailed
from elit_serve.fleet.messages import (
    Event,
    Failed,
    HowAreYou,
    ImagesDecoded,
    ImagesFailed,
    Published,
    Refused,
    ReplicaFacts,
    Reply,
    SentOrder,
    Spent,
    StepFinished,
    Taken,
)
from elit_serve.fleet.scaling import Tally
from elit_serve.plans.coarsening import Coarsening
from elit_serve.scheduler.costs import CorrectedCosts
from elit_serve.scheduler.requests import Launch
from elit_serve.scheduler.routing import Digest
from elit_serve.scheduler.routing.scaling import full_s
from elit_serve.server.engines import Engine, Servable
from elit_serve.server.settings import Settings

P = ParamSpec("P")
T = TypeVar("T")

TRANSIT_MS = 5.0  # an order and its pictures are on their way, beyond what HTTP takes
MAX_EVENTS = 100_000  # that wait for whoever keeps account of them: some minutes of steps
MAX_INTERNED = 256


class Replica:
    """An engine that takes orders as messages. name: unique in the fleet. transit_ms: counted in every promise."""

    def __init__(
        self, name: str, model: Servable, settings: Settings, clock: Clock, *, transit_ms: float = TRANSIT_MS
    ) -> None:
        self.name = name
        self._clock = clock
        self._events = Events()
        settings = settings.model_copy(update={"response_ms": settings.response_ms + transit_ms})
        self._engine = model.open(settings, shares=None, observer=self._events, clock=clock)
        self._device = model.where
        self._costs = CorrectedCosts(self._engine.cost)
        self._tally = Tally()
        self._begun_s = clock.now()
        self._under_way: dict[str, Future[Outcome]] = {}
        self._coarsenings: dict[tuple[object, ...], Coarsening] = {}
        self._admission = ThreadPoolExecutor(1, "elit-admission")  # one at a time, as where HTTP is in this process

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def _worker(self) -> Worker:
        worker = self._engine.worker
        assert isinstance(worker, Worker)
        return worker

    def start(self) -> None:
        """Returns once it is warm. Raises `EngineStopped` if it has died."""
        self._worker.start()
        self._worker.wait_until_ready()
        self.check()
        self._tally = replace(self._tally, load_s=self._clock.now() - self._begun_s)

    @property
    def tally(self) -> Tally:
        """What it has counted, for whoever decides how many replicas there are."""
        counters, budgets = self._worker.counters, self._engine.model.budgets
        return replace(
            self._tally, granted=budgets.of_level(counters.granted_levels), steps=float(counters.granted_steps)
        )

    def check(self) -> None:
        """Raises `EngineStopped` if it makes no more pictures."""
        if not self._worker.is_alive:
            raise EngineStopped("the engine is not running")

    def drain(self, timeout_s: float) -> None:
        """See `Worker.drain`."""
        self._worker.drain(timeout_s)
        self._admission.shutdown(wait=False)

    async def facts(self) -> ReplicaFacts:
        engine = self._engine
        return ReplicaFacts(
            replica=self.name,
            device=self._device,
            model=engine.model.offered(),
            cost=engine.cost,
            file_times=engine.file_times,
        )

    async def make(self, sent: SentOrder) -> AsyncIterator[Reply]:
        """Takes an order and tells of it until it has ended, or refuses it. Who stops listening gives it up."""
        loop = asyncio.get_running_loop()
        replies: asyncio.Queue[Reply] = asyncio.Queue()

        def tell(reply: Reply) -> None:
            with suppress(RuntimeError):  # the loop has ended, and whoever listened with it
                loop.call_soon_threadsafe(replies.put_nowait, reply)

        try:
            taking = self._on_admission(self._take, sent, tell)
            future = await asyncio.wrap_future(taking)
        except ElitError as error:
            yield Refused(replica=self.name, digest=self._digest(), error=error)
            return
        except asyncio.CancelledError:
            taking.add_done_callback(_give_up)  # on the thread that takes it: this loop may end before
            raise
        self._under_way[sent.order_id] = future
        try:
            yield Taken(replica=self.name, digest=self._digest())
            future.add_done_callback(lambda ended: None if ended.cancelled() else tell(_ending(ended)))
            is_over = False
            while not is_over:
                reply = await replies.get()
                yield reply
                is_over = isinstance(reply, Outcome | Failed)
        finally:
            del self._under_way[sent.order_id]
            future.cancel()

    def _on_admission(self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> Future[T]:
        """On its thread. Raises `EngineStopped` once it is drained."""
        try:
            return self._admission.submit(work, *arguments, **options)
        except RuntimeError:
            raise EngineStopped("the engine takes no more work") from None

    def _take(self, sent: SentOrder, tell: Callable[[Reply], None]) -> Future[Outcome]:
        order = self._received(sent)
        if not sent.is_passed_on:
            self._count(orders=1, offered_s=len(order.seeds) * full_s(order.demands([0])[0], self._costs))
        previews, steps = (tell if wanted else None for wanted in (sent.wants_previews, sent.wants_steps))
        try:
            return self._worker.submit(order, previews, steps, is_passed_on=sent.is_passed_on)
        except ElitError:
            self._count(refused=int(sent.is_last))
            raise

    def _count(self, *, orders: int = 0, offered_s: float = 0.0, refused: int = 0) -> None:
        """On the admission's thread alone."""
        tally = self._tally
        self._tally = replace(
            tally,
            orders=tally.orders + orders,
            offered_s=tally.offered_s + offered_s,
            refused=tally.refused + refused,
        )

    def _received(self, sent: SentOrder) -> Order:
        engine, order = self._engine, sent.order
        size = engine.model.sizes.size_of(order.shape)
        extra_ms = engine.file_times.extra_ms(size, order.output_format, len(order.seeds))
        received = sent.received(self._clock.now(), engine.open_plans, extra_ms)
        return replace(received, coarsening=received.coarsening and self._interned(received.coarsening))

    def _interned(self, coarsening: Coarsening) -> Coarsening:
        """One object for all that are equal: the scheduler remembers by it what follows from it."""
        key = (coarsening.weights, tuple(coarsening.losses.items()), tuple(coarsening.end_losses.items()))
        if len(self._coarsenings) >= MAX_INTERNED:
            self._coarsenings.clear()
        return self._coarsenings.setdefault(key, coarsening)

    async def hurry(self, order_id: str) -> bool:
        """See `Maker.hurry`; False also for an order that is not here."""
        future = self._under_way.get(order_id)
        return future is not None and await asyncio.to_thread(self._worker.hurry, future)

    async def forecast(self, sent: SentOrder) -> Forecast | ElitError:
        """See `Maker.forecast`."""
        try:
            return await asyncio.wrap_future(self._on_admission(lambda: self._worker.forecast(self._received(sent))))
        except ElitError as error:
            return error

    async def in_flight(self, max_pictures: int) -> InFlight:
        """See `Maker.in_flight`."""
        return await asyncio.to_thread(self._worker.in_flight, max_pictures)

    async def publish(self, asked: HowAreYou) -> Published:
        worker = self._worker
        return Published(
            replica=self.name,
            digest=self._digest(),
            is_ready=worker.is_ready,
            correction=worker.correction,
            counters=worker.counters,
            waiting=worker.waiting_by_owner(),
            events=self._events.taken() if asked.keeps_account else (),
        )

    def _digest(self) -> Digest:
        return self._worker.digest(self._device)


class Events(Observer):
    """Keeps what it is told until it is taken."""

    def __init__(self) -> None:
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def taken(self) -> tuple[Event, ...]:
        """All that has happened since the last time."""
        return tuple(self._events.popleft() for _ in range(len(self._events)))

    def step_finished(self, launch: Launch, observed_ms: float | None, gap_ms: float | None) -> None:
        self._events.append(StepFinished(launch, observed_ms, gap_ms))

    def images_decoded(self, took_ms: float) -> None:
        self._events.append(ImagesDecoded(took_ms))

    def spent(self, owners: Sequence[str | None], costs: Sequence[Cost]) -> None:
        self._events.append(Spent(tuple(owners), tuple(costs)))

    def images_failed(self, cause: str, num_images: int) -> None:
        self._events.append(ImagesFailed(cause, num_images))


def _ending(future: Future[Outcome]) -> Outcome | Failed:
    error = future.exception()
    if error is None:
        outcome = future.result()
        return replace(outcome, order=replace(outcome.order, open_plans=None))
    if not isinstance(error, ElitError):
        error = GenerationFailed(f"the engine failed with {type(error).__name__}")
    return Failed(error=error)


def _give_up(taking: Future[Future[Outcome]]) -> None:
    if not taking.cancelled() and taking.exception() is None:
        taking.result().cancel()
