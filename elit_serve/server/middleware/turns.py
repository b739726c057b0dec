"""Who needs a turn in the lane, and when: before the work where it is costly, else before the answer goes out.

A caller who waits for an answer asks nothing meanwhile, so that holding back cheap answers bounds how often they are
asked for. What comes of a request for pictures is found out by asking the engine; refusals are then such answers.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from elit_serve.errors import Overloaded
from elit_serve.http.faults import fault_of
from elit_serve.server.lane import Kind, Lane, kind_of
from elit_serve.server.middleware.error_answers import asked_of, error_answer

PATIENCE_S = 2.0  # with the queue of what must have its turn before the work
ANSWER_S = {Kind.HEALTH: 0.0005, Kind.METRICS: 0.001, Kind.REFUSALS: 0.002}  # Python's time for each, without HTTP


class WorkTurns:
    """A turn before the work, which ends where the answer begins; 503 for who would wait too long."""

    def __init__(self, app: ASGIApp, *, lane: Lane) -> None:
        self._app = app
        self._lane = lane

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = None if scope["type"] != "http" else kind_of(asked_of(scope).work)
        if kind is None or kind in ANSWER_S:
            await self._app(scope, receive, send)
            return
        try:
            turn = await self._lane.turn(kind, patience_s=PATIENCE_S)
        except Overloaded as error:
            await error_answer(fault_of(error), scope)(scope, receive, send)
            return
        scope["state"]["had_turn"] = True

        async def ending(message: Message) -> None:
            turn.end()  # however slowly it is read
            await send(message)

        try:
            await self._app(scope, receive, ending)
        finally:
            turn.end()


class AnswerTurns:
    """A turn before the answer of what had none before: health, metrics, and whatever is refused, by whomever.

    max_held: answers that may wait; more go out at once.
    """

    def __init__(self, app: ASGIApp, *, lane: Lane, max_held: int) -> None:
        self._app = app
        self._lane = lane
        self._max_held = max_held
        self._num_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = kind_of(asked_of(scope).work)
        held: list[Message] = []
        holds = False

        async def watch(message: Message) -> None:
            nonlocal holds
            if message["type"] == "http.response.start":
                is_cheap = kind is not None or is_refusal(message["status"])
                holds = is_cheap and "had_turn" not in scope["state"] and self._num_held < self._max_held
            if holds:
                held.append(message)
            else:
                await send(message)

        await self._app(scope, receive, watch)
        if held:
            await self._pass(kind if kind in ANSWER_S else Kind.REFUSALS)
            for message in held:
                await send(message)

    async def _pass(self, kind: Kind) -> None:
        self._num_held += 1
        try:
            await self._lane.passed(kind, ANSWER_S[kind])
        finally:
            self._num_held -= 1


def is_refusal(status: int) -> bool:
    """Of something for which the engine has done nothing."""
    return 400 <= status < 500 or status == 503
