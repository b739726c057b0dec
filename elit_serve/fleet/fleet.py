"""Replicas as one `Maker`: orders find the replica that keeps their promise, and are made again where one is lost.

Nothing is promised here. An order is offered to the replica that most likely has room for it, and to the next one if
it refuses; a caller is refused only where all of them refuse.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import aclosing
from dataclasses import fields, replace
from secrets import token_hex
from statistics import fmean

from elit_serve.clock import Clock
from elit_serve.engine.forecast import Forecast
from elit_serve.engine.in_flight import InFlight
from elit_serve.engine.maker import ReplicaState
from elit_serve.engine.observer import Observer
from elit_serve.engine.order import Order
from elit_serve.engine.picture import Outcome, Preview, StepRun
from elit_serve.errors import DeadlineExceeded, ElitError, EngineStopped, GenerationFailed, Infeasible, Overloaded
from elit_serve.fleet.attention import Attention
from elit_serve.fleet.cluster import ClusterLost
from elit_serve.fleet.link import Link, ReplicaLost
from elit_serve.fleet.loop_thread import LoopThread
from elit_serve.fleet.messages import Failed, Published, Refused, ReplicaFacts, Reply, SentOrder, Taken
from elit_serve.scheduler.core import Counters
from elit_serve.scheduler.routing import Router

logger = logging.getLogger(__name__)

PERIOD_S = 0.25  # so often replicas tell of themselves; what they answer to orders tells as much
OFFER_S = 1.0  # until a replica has taken or refused an order, which is milliseconds; then the next one is asked
SUBMITTERS = 32  # orders on their way to replicas at a time; it is milliseconds for each
PATIENCE_S = 3.0  # with replicas none of which answers, before whoever asks is told so
ASK_S = 10.0  # for what is asked of replicas beside orders
LOST_S = 60.0  # without any word of Ray: whoever watches this process should start it again
NOBODY_S = 1800.0  # without any replica, though Ray is there, which makes new ones: longer than the largest models load
MAX_PICTURE_IDS = 1 << 40  # of one replica; each numbers its pictures by itself
MAX_MAKINGS = 3  # of an order whose replicas are lost: it may be to blame


class UnderWay:
    """An order from when it is offered to replicas to its end, of which whoever asked is told on the loop.

    taken: done once a replica has it, or with why none takes it. replica: which has it now.
    """

    def __init__(
        self,
        order: Order,
        on_preview: Callable[[Preview], None] | None,
        on_step: Callable[[StepRun], None] | None,
    ) -> None:
        self.order = order
        self.order_id = token_hex(8)
        self.taken: Future[None] = Future()
        self.future: Future[Outcome] = Future()
        self.replica = ""
        self.num_makings = 0
        self._on_preview = on_preview
        self._on_step = on_step
        self._num_previews: Counter[int] = Counter()  # that were shown, by seed

    def sent(self, now_s: float, *, is_passed_on: bool, is_last: bool) -> SentOrder:
        sent = SentOrder.of(
            self.order,
            now_s,
            order_id=self.order_id,
            wants_previews=self._on_preview is not None,
            wants_steps=self._on_step is not None,
        )
        return replace(sent, is_passed_on=is_passed_on, is_last=is_last)

    def tell(self, reply: Reply) -> None:
        """Whoever asked is told of everything once, also where it is made again."""
        match reply:
            case StepRun() if self._on_step is not None:
                self._on_step(reply)
            case Preview() if self._on_preview is not None and reply.index >= self._num_previews[reply.seed]:
                self._num_previews[reply.seed] = reply.index + 1
                self._on_preview(reply)
            case Outcome():
                self._end(replace(reply, order=replace(reply.order, arrived_s=self.order.arrived_s)))
            case Failed():
                self._end(reply.error)

    def fail(self, error: ElitError) -> None:
        if not self.taken.done():
            self.taken.set_exception(error)
        self._end(error)

    def _end(self, ending: Outcome | ElitError) -> None:
        """Unless whoever asked has left."""
        if self.future.done() or not self.future.set_running_or_notify_cancel():
            return
        if isinstance(ending, Outcome):
            self.future.set_result(ending)
        else:
            self.future.set_exception(ending)


class Fleet:
    """All replicas that `link` leads to; a `Maker`. Times are of `clock`.

    facts: of any replica. keeps_account: whether `observer` is told what happens on the replicas; one ingress does.
    """

    def __init__(
        self,
        link: Link,
        thread: LoopThread,
        facts: Sequence[ReplicaFacts],
        *,
        clock: Clock,
        observer: Observer,
        keeps_account: bool = True,
    ) -> None:
        self._link = link
        self._thread = thread
        self._clock = clock
        self._observer = observer
        self._keeps_account = keeps_account
        self._router = Router({each.device: each.cost for each in facts})
        self._devices = {each.device for each in facts}
        self._published: dict[str, Published] = {}  # replaced as a whole: any thread reads it
        self._counted: dict[str, Counters] = {}  # by every replica that there ever was
        self._under_way: dict[Future[Outcome], UnderWay] = {}
        self._changed = threading.Condition()
        self._informing = asyncio.Lock()
        self._attention = Attention()
        self._accepts = True
        self._is_ready = threading.Event()
        self._has_died = False
        self._ended: Future[None] = Future()

    # What a `Maker` tells

    @property
    def is_alive(self) -> bool:
        return not (self._has_died or self._ended.done())

    @property
    def is_ready(self) -> bool:
        return self._accepts and self.is_alive and any(each.is_ready for each in self._published.values())

    @property
    def is_draining(self) -> bool:
        return not self._accepts

    @property
    def has_died(self) -> bool:
        return self._has_died

    @property
    def ended(self) -> Future[None]:
        return self._ended

    @property
    def num_devices(self) -> int:
        return max(1, len(self._published))

    @property
    def replicas(self) -> dict[str, ReplicaState]:
        return {
            name: ReplicaState(
                is_ready=each.is_ready,
                num_waiting=each.digest.num_waiting,
                num_running=each.digest.num_running,
                correction=each.correction,
                counters=each.counters,
            )
            for name, each in self._published.items()
        }

    @property
    def num_submitters(self) -> int:
        """They wait for replicas, not for each other."""
        return SUBMITTERS

    @property
    def num_waiting(self) -> int:
        return sum(each.digest.num_waiting for each in self._published.values())

    @property
    def num_running(self) -> int:
        return sum(each.digest.num_running for each in self._published.values())

    @property
    def counters(self) -> Counters:
        return _summed(list(self._counted.values()))

    @property
    def correction(self) -> float:
        """The mean over replicas."""
        return fmean([each.correction for each in self._published.values()] or [1.0])

    def waiting_by_owner(self) -> Counter[str]:
        return sum((each.waiting for each in self._published.values()), Counter[str]())

    # What it is told to do

    def start(self) -> None:
        self._thread.begin(self._keep_informed())

    def wait_until_ready(self) -> None:
        self._is_ready.wait()

    def submit(
        self,
        order: Order,
        on_preview: Callable[[Preview], None] | None = None,
        on_step: Callable[[StepRun], None] | None = None,
    ) -> Future[Outcome]:
        """As `Maker.submit`; waits until a replica has taken it, or all have refused."""
        under_way = UnderWay(order, on_preview, on_step)
        with self._changed:
            self._check_accepting()
            self._under_way[under_way.future] = under_way
        try:
            making = self._thread.begin(self._make(under_way))
        except EngineStopped:
            self._forget(under_way)
            raise
        under_way.future.add_done_callback(lambda future: making.cancel() if future.cancelled() else None)
        under_way.taken.result()
        return under_way.future

    def hurry(self, future: Future[Outcome]) -> bool:
        under_way = self._under_way.get(future)
        if under_way is None:
            return False
        try:
            return self._thread.run(self._link.hurry(under_way.replica, under_way.order_id), ASK_S)
        except (ReplicaLost, EngineStopped):
            return False

    def forecast(self, order: Order) -> Forecast:
        """By the replica that would be asked first, or else the next that does not refuse; the least refusal if all
        do."""
        self._check_accepting()
        return self._thread.run(self._forecast(order), ASK_S)

    def in_flight(self, max_pictures: int) -> InFlight:
        try:
            parts = self._thread.run(self._link.in_flight(max_pictures), ASK_S)
        except EngineStopped:
            parts = []
        pictures = [
            replace(picture, picture_id=index * MAX_PICTURE_IDS + picture.picture_id)
            for index, part in enumerate(parts)
            for picture in part.pictures
        ]
        return InFlight(
            now_s=self._clock.now(),
            num_pictures=sum(part.num_pictures for part in parts),
            num_waiting=sum(part.num_waiting for part in parts),
            num_running=sum(part.num_running for part in parts),
            correction=self.correction,
            counters=self.counters,
            pictures=tuple(sorted(pictures, key=lambda picture: not picture.levels)[:max_pictures]),
        )

    def refresh(self) -> None:
        """Asks the replicas now how they are, rather than when it is time for it. Raises `EngineStopped` if it ends."""
        self._thread.run(self._inform(), ASK_S)

    def drain(self, timeout_s: float) -> None:
        with self._changed:
            self._accepts = False
            self._changed.wait_for(lambda: not self._under_way, min(timeout_s, threading.TIMEOUT_MAX))
        self.stop()

    def stop(self) -> None:
        with self._changed:
            self._accepts = False
        self._thread.close(self._link.close)
        self._end()

    def _end(self) -> None:
        self._is_ready.set()
        try:
            self._ended.set_result(None)
        except InvalidStateError:
            return  # it had ended

    def _check_accepting(self) -> None:
        if not self._accepts or not self.is_alive:
            raise EngineStopped("the engine takes no more work")

    def _forget(self, under_way: UnderWay) -> None:
        with self._changed:
            self._under_way.pop(under_way.future, None)
            self._changed.notify_all()

    # On the loop: an order

    async def _make(self, under_way: UnderWay) -> None:
        """From its first offer to its end. Whatever happens, whoever asked is told: also where this is cancelled."""
        try:
            if not self.is_alive:
                raise EngineStopped("the engine takes no more work")
            replies = await self._placed(under_way)
            under_way.taken.set_result(None)
            await self._follow(under_way, replies)
        except ElitError as error:
            under_way.fail(error)
        except asyncio.CancelledError:
            under_way.fail(EngineStopped("the engine stopped before this request was done"))
            raise
        except Exception as error:
            logger.exception("an order was not followed to its end")
            under_way.fail(GenerationFailed(f"the server failed with {type(error).__name__}"))
        finally:
            self._forget(under_way)

    async def _placed(self, under_way: UnderWay) -> AsyncIterator[Reply]:
        """What the replica tells that has taken it. Raises the least refusal of all.

        Where none answers, which a busy machine may do for a moment, waits a little for word of one.
        """
        until_s = self._clock.now() + PATIENCE_S
        while True:
            offered = await self._offered(under_way)
            if not isinstance(offered, list):
                return offered
            if offered or self._clock.now() > until_s:
                raise least(offered)
            await asyncio.sleep(PERIOD_S)

    async def _offered(self, under_way: UnderWay) -> AsyncIterator[Reply] | list[ElitError]:
        """What the replica tells that has taken it, or the refusals of all that answer."""
        order, refusals = under_way.order, list[ElitError]()
        demands = order.demands(range(len(order.seeds)))
        candidates = self._router.rank(demands, self._clock.now())
        for candidate in candidates:
            now_s, is_last = self._clock.now(), candidate is candidates[-1]
            ticket = self._router.asked(candidate.replica, demands, now_s)
            sent = under_way.sent(now_s, is_passed_on=bool(refusals), is_last=is_last)
            replies = self._link.make(candidate.replica, sent)
            try:
                async with asyncio.timeout(OFFER_S):
                    first = await anext(replies)
            except (ReplicaLost, TimeoutError):
                self._lose(candidate.replica)
                continue
            assert isinstance(first, Taken | Refused), first
            self._router.answered(candidate.replica, ticket, is_taken=isinstance(first, Taken))
            if first.digest.device in self._devices:
                self._router.heard(first.replica, first.digest, self._clock.now())
            if isinstance(first, Taken):
                under_way.replica = first.replica
                return replies
            refusals.append(first.error)
            await replies.aclose()  # type: ignore[attr-defined]
        return refusals

    async def _follow(self, under_way: UnderWay, replies: AsyncIterator[Reply]) -> None:
        """Tells whoever asked, until it has ended; where its replica is lost, it is made again by another."""
        while True:
            try:
                async with aclosing(replies), self._attention.waiting_for(under_way.replica):  # type: ignore[type-var]
                    async for reply in replies:
                        under_way.tell(reply)
                return
            except ReplicaLost:
                self._lose(under_way.replica)
                replies = await self._placed_again(under_way)

    async def _placed_again(self, under_way: UnderWay) -> AsyncIterator[Reply]:
        """Raises what whoever asked is told where that cannot be."""
        order = under_way.order
        under_way.num_makings += 1
        logger.warning("a replica was lost; what it made is made again by another if there is time")
        if under_way.num_makings == MAX_MAKINGS:
            self._observer.order_lost("given_up")
            raise GenerationFailed(f"{MAX_MAKINGS} replicas were lost while they made it")
        if order.is_hard and self._clock.now() >= order.deadline_s:
            self._observer.order_lost("too_late")
            raise DeadlineExceeded(order.latency_ms)
        try:
            replies = await self._placed(under_way)
        except ElitError as error:
            self._observer.order_lost("no_room")
            raise EngineStopped(f"the replica that made it was lost, and no other can take it: {error}") from None
        self._observer.order_lost("made_again")
        return replies

    async def _forecast(self, order: Order) -> Forecast:
        demands = order.demands(range(len(order.seeds)))
        forecasts, errors = list[Forecast](), list[ElitError]()
        for candidate in self._router.rank(demands, self._clock.now()):
            sent = SentOrder.of(order, self._clock.now(), order_id="")
            try:
                foreseen = await self._link.forecast(candidate.replica, sent)
            except ReplicaLost:
                continue
            if isinstance(foreseen, ElitError):
                errors.append(foreseen)
            elif isinstance(foreseen.course, ElitError):
                forecasts.append(foreseen)
            else:
                return foreseen
        if not forecasts:
            raise least(errors)
        refusal = least([foreseen.course for foreseen in forecasts if isinstance(foreseen.course, ElitError)])
        return replace(forecasts[0], course=refusal)

    # On the loop: what is known of the replicas

    async def _keep_informed(self) -> None:
        """For as long as it lives."""
        asked_s = heard_s = self._clock.now()
        while True:
            try:
                await self._inform()
                asked_s = self._clock.now()
                if self._published:
                    heard_s = asked_s
                elif asked_s - heard_s > NOBODY_S:
                    return await self._die(f"no replica has come for {NOBODY_S / 60:.0f} minutes")
            except asyncio.CancelledError:
                raise
            except ClusterLost as error:
                return await self._die(str(error))
            except Exception:
                logger.exception("the replicas could not be asked how they are")
                if self._clock.now() - asked_s > LOST_S:
                    return await self._die(f"Ray has answered nothing for {LOST_S:.0f} seconds")
            await asyncio.sleep(PERIOD_S)

    async def _die(self, cause: str) -> None:
        logger.critical("%s; this server ends, to be started anew", cause)
        self._has_died = True
        await self._thread.cancel_others()
        await asyncio.to_thread(self._end)  # whoever is told may wait for what this loop does

    async def _inform(self) -> None:
        async with self._informing:
            await self._heard(await self._link.publish(keeps_account=self._keeps_account))

    async def _heard(self, published: Iterable[Published]) -> None:
        now_s, told = self._clock.now(), {each.replica: each for each in published}
        for name, each in told.items():
            if each.digest.device not in self._devices:
                await self._learn(name)
            if each.is_ready:
                self._router.heard(name, each.digest, now_s)
            else:
                self._router.lost(name)
            for event in each.events:
                event.tell_to(self._observer)
        silent = self._attention.after_round(told.keys())
        for name in silent | (set(self._router.replicas) - self._published.keys() - told.keys()):
            self._router.lost(name)
        self._published = {name: each for name, each in (self._published | told).items() if name not in silent}
        self._counted = {**self._counted, **{name: each.counters for name, each in told.items()}}
        if any(each.is_ready for each in told.values()):
            self._is_ready.set()

    async def _learn(self, replica: str) -> None:
        """What steps cost on another kind of device."""
        facts = await self._link.facts(replica)
        self._router.learn(facts.device, facts.cost)
        self._devices.add(facts.device)

    def _lose(self, replica: str) -> None:
        """It is asked for nothing until it has told of itself again."""
        self._router.lost(replica)


def least(refusals: Sequence[ElitError]) -> ElitError:
    """What a caller is told whom all replicas refuse: when the first of them would take him, or, if none could even
    alone, the smallest target that one of them meets."""
    overloaded = [refusal for refusal in refusals if isinstance(refusal, Overloaded)]
    infeasible = [refusal for refusal in refusals if isinstance(refusal, Infeasible)]
    if overloaded:
        return min(overloaded, key=lambda refusal: refusal.retry_after_s)
    if infeasible:
        return min(infeasible, key=lambda refusal: refusal.min_latency_ms)
    return refusals[0] if refusals else EngineStopped("no replica is there to take it")


def _summed(counters: Sequence[Counters]) -> Counters:
    return Counters(**{field.name: sum(getattr(each, field.name) for each in counters) for field in fields(Counters)})
