"""What the routes share, and how a request for pictures is run to its end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from elit_serve.clock import Clock
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, Preview, StepRun
from elit_serve.errors import ElitError, Overloaded, ShareExceeded
from elit_serve.http.schemas import GenerateRequest, GenerateResponse
from elit_serve.plans.formats import AnswerFormat
from elit_serve.server.answers import answer, picture_quality
from elit_serve.server.engines import Engine, Engines
from elit_serve.server.orders import Taken, order_of
from elit_serve.server.peers import Peers
from elit_serve.server.settings import Settings
from elit_serve.server.under_way import UnderWay
from elit_serve.server.watching.arrival_log import ArrivalLog
from elit_serve.server.watching.metrics import Metrics

if TYPE_CHECKING:
    from elit_serve.server.watching.tracing import Tracing


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes share. started_at: Unix time in seconds.

    peers: other processes of this server, where there are any. admission: threads, as many as the engines have use for.
    Behind a long queue a decision takes milliseconds, in which the event loop would answer nobody.
    """

    engines: Engines
    settings: Settings
    metrics: Metrics
    arrival_log: ArrivalLog | None
    tracing: Tracing | None
    clock: Clock
    peers: Peers | None = None
    started_at: int = field(default_factory=lambda: int(time.time()))
    under_way: UnderWay = field(default_factory=UnderWay)

    @cached_property
    def admission(self) -> CapacityLimiter:
        return CapacityLimiter(max(engine.worker.num_submitters for engine in self.engines.values()))


async def take(
    service: Service,
    engine: Engine,
    body: GenerateRequest,
    *,
    output_format: AnswerFormat | None = None,
    owner: str | None = None,
    num_previews: int = 0,
    on_preview: Callable[[Preview], None] | None = None,
) -> Taken:
    """Has the engine make what `body` asks for, or raises why not.

    output_format: of the files; None leaves it to `body`. owner: the name of the caller's key, if keys are set.
    on_preview: see `Worker.submit`.
    """
    arrived_s = service.clock.now()

    def taken() -> Taken:
        order = order_for(engine, body, arrived_s=arrived_s, output_format=output_format)
        order = replace(order, owner=owner, num_previews=num_previews)
        if service.arrival_log is not None:
            service.arrival_log.record(body, order, engine.model.budgets)
        return admit(service, engine, body, order, on_preview=on_preview)

    return await to_thread.run_sync(taken, limiter=service.admission)


def order_for(
    engine: Engine, body: GenerateRequest, *, arrived_s: float, output_format: AnswerFormat | None = None
) -> Order:
    """What the engine is to do for `body`. Raises `InvalidInput` for what cannot be asked of its model."""
    order = order_of(
        body,
        engine.model,
        engine.cost,
        engine.settings,
        arrived_s=arrived_s,
        open_plans=engine.open_plans,
        output_format=output_format,
    )
    size = engine.model.sizes.size_of(order.shape)
    extra_ms = engine.file_times.extra_ms(size, order.output_format, len(order.seeds))
    return replace(order, extra_ms=extra_ms)


def admit(
    service: Service,
    engine: Engine,
    body: GenerateRequest,
    order: Order,
    *,
    on_preview: Callable[[Preview], None] | None = None,
    on_step: Callable[[StepRun], None] | None = None,
) -> Taken:
    """Has the engine take an order that somebody waits for, or raises why not, which is counted."""
    try:
        _check_share(service, engine, order)
        return hand_over(engine, body, order, on_preview=on_preview, on_step=on_step)
    except ElitError as error:
        service.metrics.of(engine.name).refused(error)
        _note_full_queue(service, engine, order, error)
        raise


def hand_over(
    engine: Engine,
    body: GenerateRequest,
    order: Order,
    *,
    on_preview: Callable[[Preview], None] | None = None,
    on_step: Callable[[StepRun], None] | None = None,
) -> Taken:
    """Has the engine take an order, or raises why not, which is not counted: who can wait comes back."""
    future = engine.worker.submit(order, on_preview, on_step)
    return Taken(engine=engine, body=body, order=order, future=future)


def _check_share(service: Service, engine: Engine, order: Order) -> None:
    """Raises `ShareExceeded` where the order's owner would crowd out others. It may come back when as many pictures as
    it has too many were made, one by one."""
    if engine.shares is None or order.owner is None:
        return
    waiting = engine.worker.waiting_by_owner()
    excess = engine.shares.excess(order.owner, len(order.seeds), waiting, service.clock.now())
    if excess > 0:
        alone_ms = engine.cost.alone_ms(order.shape, order.expected_levels, order.weak_caps, skipped=order.skips.core)
        raise ShareExceeded(order.owner, excess * alone_ms / 1000)


def _note_full_queue(service: Service, engine: Engine, order: Order, error: ElitError) -> None:
    """Who was turned away will come back, and others leave room for that."""
    if engine.shares is None or order.owner is None:
        return
    if isinstance(error, Overloaded) and error.reason == "queue_full":
        engine.shares.turned_away(order.owner, error.retry_after_s, service.clock.now())


def facts_of(service: Service, taken: Taken, outcome: Outcome) -> GenerateResponse:
    """The answer, for a request that is done; counts it."""
    model = taken.engine.model
    total_ms = 1000 * (service.clock.now() - taken.order.arrived_s)
    facts = answer(taken.body, outcome, model=model, total_ms=total_ms)
    qualities = [picture_quality(model, outcome.order, picture.progress) for picture in outcome.pictures]
    service.metrics.of(taken.engine.name).done(outcome, qualities)
    return facts


async def answer_to(request: Request, service: Service, taken: Taken) -> GenerateResponse | None:
    """The answer once it is there; None, with the work given up, when the caller has left."""
    request.state.taken = taken
    metrics = service.metrics.of(taken.engine.name)
    try:
        with service.under_way.waited_for(request.state.request_id, taken):
            outcome = await _unless_disconnected(request, taken.future)
    except ElitError as error:
        metrics.ended(error)
        raise
    if outcome is None:
        metrics.cancelled()
        return None
    return facts_of(service, taken, outcome)


async def _unless_disconnected(request: Request, future: Future[Outcome]) -> Outcome | None:
    waiting = asyncio.wrap_future(future)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {waiting, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done():
            return waiting.result()
        await to_thread.run_sync(future.cancel)  # gives the order up, for which the engine's lock is needed
        return None
    finally:
        waiting.cancel()  # and `future` with it, where this task itself is cancelled
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
