"""What the server is doing now: once as JSON, and again and again as server-sent events.

A snapshot is made when somebody waits for it, at most every `PERIOD_S`, and all who wait get the same one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from elit_serve.engine.in_flight import PictureInFlight
from elit_serve.engine.maker import Maker
from elit_serve.http import problems
from elit_serve.http.access import access
from elit_serve.http.events import EventStream, enter_stream, event, stream_content
from elit_serve.http.groups import Group
from elit_serve.http.problems import Problem
from elit_serve.http.schemas import SkipsUsed
from elit_serve.server.answers import skips_used
from elit_serve.server.engines import Engine, Engines
from elit_serve.server.lane import Kind, Lane
from elit_serve.server.watching.metrics import EngineMetrics, Metrics
from elit_serve.server.watching.snapshots import Snapshots

PERIOD_S = 0.25
SECRET = "a prompt"  # in place of somebody's own words
MAX_PICTURES = 64  # told one by one; the rest is in the numbers


class LivePicture(BaseModel):
    """levels, strides: of the steps so far; steps: of the plan's time grid. gflops, device_ms: what it has cost so far.
    left_ms: until it should be there; below 0 it is late."""

    id: int
    label: str
    size: str
    state: Literal["waiting", "running", "finishing"]
    levels: list[int]
    strides: list[int]
    steps: int
    skips: SkipsUsed | None
    age_ms: float
    left_ms: float
    promised: bool
    gflops: float
    device_ms: float


class Spent(BaseModel):
    """On pictures, whatever became of them. gflops: 10^9 operations of the model's steps."""

    gflops: float
    device_s: float


class Totals(BaseModel):
    """Counts since the start; the difference of two snapshots, over their `at_s`, is a rate."""

    pictures: int = Field(description="Answered.")
    promises_kept: int
    promises_missed: int
    granted_steps: int = Field(description="Steps whose level was the server's to choose.")
    granted_budget: float = Field(description="Sum of the budgets of these steps.")
    device_s: float = Field(description="Seconds that the device ran steps, or decoded what they ended.")
    gflops: float = Field(description="What these steps computed, in 10^9 operations.")
    spent: dict[str, Spent] = Field(description="By the name of the key that it was for, where it was anything.")
    refusals: dict[str, int] = Field(description="Requests that were not taken, by reason.")


class Load(BaseModel):
    """server_load: pictures in flight, as vLLM counts requests. in_flight: the first of them, those that run before
    those that wait. correction: observed over predicted step times. at_s: seconds of a clock that only rises."""

    status: Literal["ok", "draining", "stopped"]
    at_s: float
    server_load: int
    running: int
    queue_length: int
    queue_limit: int
    correction: float
    totals: Totals
    in_flight: list[LivePicture]


class LiveFeed:
    """The same snapshots for everybody who watches. make: on a thread, as it may wait for the engine's lock."""

    def __init__(self, make: Callable[[], Load]) -> None:
        self._make = make
        self._making = asyncio.Lock()
        self._made_s = float("-inf")
        self._number = 0
        self._event = b""
        self._is_over = False

    async def events(self) -> AsyncIterator[bytes]:
        """Until the engine has stopped. Who reads slowly misses snapshots, and delays nobody."""
        seen, is_over = self._number, False
        while not is_over:
            seen, snapshot, is_over = await self._next(seen)
            yield snapshot

    async def _next(self, seen: int) -> tuple[int, bytes, bool]:
        """A snapshot after that of this number: made by the first who needs it, while the others wait for him."""
        async with self._making:
            if self._number == seen:
                now_s = asyncio.get_running_loop().time
                await asyncio.sleep(self._made_s + PERIOD_S - now_s())
                load = await run_in_threadpool(self._make)
                self._event = event("load", load)
                self._made_s, self._is_over = now_s(), load.status == "stopped"
                self._number += 1
            return self._number, self._event, self._is_over


def load_of(engine: Engine, metrics: EngineMetrics) -> Load:
    """A snapshot."""
    model, worker = engine.model, engine.worker
    now = worker.in_flight(MAX_PICTURES)
    counters, spent = now.counters, metrics.spent_by_key
    totals = Totals(
        pictures=counters.delivered,
        promises_kept=counters.kept,
        promises_missed=counters.missed,
        granted_steps=counters.granted_steps,
        granted_budget=model.budgets.of_level(counters.granted_levels),
        device_s=metrics.device_s,
        gflops=sum(cost.gflops for cost in spent.values()),
        spent={key: Spent(gflops=cost.gflops, device_s=cost.device_ms / 1000) for key, cost in spent.items()},
        refusals=metrics.refusals,
    )
    return Load(
        status=_status_of(worker),
        at_s=now.now_s,
        server_load=now.num_pictures,
        running=now.num_running,
        queue_length=now.num_waiting,
        queue_limit=engine.settings.max_queue,
        correction=now.correction,
        totals=totals,
        in_flight=[_shown(picture, engine) for picture in now.pictures],
    )


def _status_of(worker: Maker) -> Literal["ok", "draining", "stopped"]:
    if not worker.is_alive:
        return "stopped"
    return "draining" if worker.is_draining else "ok"


def _shown(picture: PictureInFlight, engine: Engine) -> LivePicture:
    is_secret = picture.is_personal and engine.settings.log_prompts == "off"
    return LivePicture(
        id=picture.picture_id,
        label=SECRET if is_secret else picture.words,
        size=str(engine.model.sizes.size_of(picture.shape)),
        state=picture.state,
        levels=list(picture.levels),
        strides=list(picture.strides),
        steps=picture.num_steps,
        skips=skips_used(picture.skips),
        age_ms=round(1000 * picture.age_s, 1),
        left_ms=round(1000 * picture.left_s, 1),
        promised=picture.is_promised,
        gflops=picture.cost.gflops,
        device_ms=round(picture.cost.device_ms, 1),
    )


class Watched:
    """An engine as those see it who watch."""

    def __init__(self, engine: Engine, metrics: EngineMetrics) -> None:
        self.feed = LiveFeed(lambda: load_of(engine, metrics))
        self.load = Snapshots(lambda: load_of(engine, metrics).model_dump_json())


class LiveView:
    """All engines of a server, for those who watch."""

    def __init__(self, engines: Engines, metrics: Metrics) -> None:
        self._engines = engines
        self._watched = {name: Watched(engine, metrics.of(name)) for name, engine in engines.items()}

    def of(self, model: str | None) -> Watched:
        """The engine that is asked for, by default the first. Raises `ModelNotFound`."""
        return self._watched[self._engines.of(model).name]


router = APIRouter(tags=[Group.OPERATIONS])

Model = Annotated[str | None, Query(max_length=200, description="One of `/v1/models`; the first if left out.")]

_INVALID: dict[str, Any] = {"model": Problem, "content": {problems.MEDIA_TYPE: {}}}
_ERRORS: dict[int | str, dict[str, Any]] = {
    404: {**_INVALID, "description": "Other models are served."},
    422: {**_INVALID, "description": "The query is not valid."},
}


@router.get(
    "/load",
    summary="What the server is doing now, and what it has counted",
    response_model=Load,
    responses=_ERRORS,
)
@access(needs="metrics", work="metrics")
async def load(request: Request, model: Model = None) -> Response:
    return Response(await _watched(request, model).load.fresh(), media_type="application/json")


@router.get(
    "/v1/live",
    summary="The same as server-sent events, about four a second",
    response_class=Response,
    responses={
        200: {
            "description": "Events named `load`, whose data are those of `/load`, until the engine has stopped.",
            "content": stream_content({"load": Load}),
        },
        **_ERRORS,
    },
)
@access(needs="metrics")
async def live(request: Request, model: Model = None) -> EventStream:
    watched = _watched(request, model)
    enter_stream(request)
    return EventStream(_in_turn(watched.feed, request.app.state.lane))


def _watched(request: Request, model: str | None) -> Watched:
    view: LiveView = request.app.state.live
    return view.of(model)


async def _in_turn(feed: LiveFeed, lane: Lane) -> AsyncIterator[bytes]:
    """With many watchers each sees fewer snapshots: together they may not take more time than other lookers-on."""
    async for snapshot in feed.events():
        await lane.passed(Kind.STREAMS, 0.0)
        yield snapshot
