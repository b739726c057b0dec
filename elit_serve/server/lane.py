"""One lane for whatever is not the engine's: its users take turns, and the lane rests between them.

The engine's worker shares its Python process with everything that is answered, and Python runs one thread at a time.
A worker in mid-step gets hold of it about twice a millisecond while somebody else computes; its steps are hundreds of
calls. So what keeps promises is not how quickly the others are served, but for which share of the time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from elit_serve.errors import Overloaded
from elit_serve.http.access import WorkKind

SHARE = 0.2  # of the time that the lane may take while the engine has work: its steps take a quarter longer then
IDLE_SHARE = 0.5  # and otherwise: a request for pictures that comes must get through
LINGER_S = 1.0  # the engine counts as working for so long after it did: promises come one after another
MAX_TURN_S = 0.25  # of one turn that others wait for, and of the rest after it: a database may not answer at all
HTTP_S = 0.0005  # of each turn outside of it: a request is parsed, an answer written


class Kind(Enum):
    """Who takes turns: the kinds among each other, by the time that each has had; within a kind the first comes first.

    at_once: turns of this kind under way; more than one only where they wait for something else than Python.
    most_s: what one of them counts for at most.
    """

    HEALTH = ("health", 1, MAX_TURN_S)
    METRICS = ("metrics", 1, MAX_TURN_S)
    PLANS = ("plans", 1, MAX_TURN_S)
    JOBS = ("jobs", 8, 0.002)  # which mostly wait for their database
    REFUSALS = ("refusals", 1, MAX_TURN_S)
    STREAMS = ("streams", 1, MAX_TURN_S)
    OTHERS = ("others", 1, MAX_TURN_S)

    def __init__(self, what: str, at_once: int, most_s: float) -> None:
        self.what = what  # members of an enumeration with the same value would be the same
        self.at_once = at_once
        self.most_s = most_s


def kind_of(work: WorkKind) -> Kind | None:
    """None for what the engine is to do."""
    return _BY_WORK[work]


_BY_WORK: dict[WorkKind, Kind | None] = {
    "pictures": None,
    "health": Kind.HEALTH,
    "metrics": Kind.METRICS,
    "plans": Kind.PLANS,
    "jobs": Kind.JOBS,
    "others": Kind.OTHERS,
}


@dataclass(eq=False, kw_only=True)
class _Queue:
    """used_s: time that this kind has had; one that was away is put level with the others, and saves up nothing."""

    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    under_way: int = 0
    used_s: float = 0.0


class Lane:
    """Gives turns, on the event loop. engine_is_busy: whether it has work, which the lane would delay."""

    def __init__(self, engine_is_busy: Callable[[], bool]) -> None:
        self._engine_is_busy = engine_is_busy
        self._queues = {kind: _Queue() for kind in Kind}
        self._next_s = float("-inf")  # when the next turn may begin
        self._spares_until_s = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    async def turn(self, kind: Kind, *, patience_s: float | None = None) -> Turn:
        """Waits for a turn, which the caller must end. Raises `Overloaded` if there is none within `patience_s`."""
        queue = self._queues[kind]
        if not queue.waiting and not queue.under_way:
            queue.used_s = max(queue.used_s, self._least_used_s())
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.waiting.append(mine)
        self._advance()
        try:
            if not mine.done():
                await asyncio.wait({mine}, timeout=patience_s)
        except asyncio.CancelledError:
            if mine.done():
                Turn(self, kind).end()
            mine.cancel()
            raise
        if not mine.done():
            mine.cancel()
            raise Overloaded("too_many_requests", 1.0)
        return Turn(self, kind)

    async def passed(self, kind: Kind, cost_s: float) -> None:
        """Returns after a turn for something that is already done and took so long, or is about to be."""
        (await self.turn(kind)).end(cost_s)

    def _least_used_s(self) -> float:
        active = [queue.used_s for queue in self._queues.values() if queue.waiting or queue.under_way]
        return min(active, default=0.0)

    def _advance(self) -> None:
        """Begins what turns may begin now, and sees to it that the next one does."""
        loop = asyncio.get_running_loop()
        while (kind := self._next_kind()) is not None:
            now_s = loop.time()
            if now_s < self._next_s:
                self._wake_at(self._next_s)
                return
            queue = self._queues[kind]
            mine = queue.waiting.popleft()
            if not mine.cancelled():
                queue.under_way += 1
                self._next_s = now_s + MAX_TURN_S
                mine.set_result(None)

    def _next_kind(self) -> Kind | None:
        ready = [kind for kind, queue in self._queues.items() if queue.waiting and queue.under_way < kind.at_once]
        return min(ready, key=lambda kind: self._queues[kind].used_s, default=None)

    def _wake_at(self, time_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(time_s, self._advance)

    def _ended(self, kind: Kind, took_s: float) -> None:
        queue = self._queues[kind]
        queue.under_way -= 1
        counted_s = min(took_s, kind.most_s) + HTTP_S
        queue.used_s += counted_s
        self._next_s = asyncio.get_running_loop().time() + self._rest_s(counted_s)
        self._advance()

    def _rest_s(self, took_s: float) -> float:
        now_s = asyncio.get_running_loop().time()
        if self._engine_is_busy():
            self._spares_until_s = now_s + LINGER_S
        share = SHARE if now_s < self._spares_until_s else IDLE_SHARE
        return min(MAX_TURN_S, took_s * (1 / share - 1))


class Turn:
    """A turn that has begun."""

    def __init__(self, lane: Lane, kind: Kind) -> None:
        self._lane = lane
        self._kind = kind
        self._began_s = asyncio.get_running_loop().time()
        self._has_ended = False

    def end(self, cost_s: float | None = None) -> None:
        """The next may come; again does nothing. cost_s: what it took, if not the time since its beginning."""
        if not self._has_ended:
            self._has_ended = True
            took_s = asyncio.get_running_loop().time() - self._began_s
            self._lane._ended(self._kind, took_s if cost_s is None else cost_s)
