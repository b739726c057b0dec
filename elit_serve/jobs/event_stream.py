"""Server-sent events of one job, for as long as somebody follows it; whoever leaves takes nothing from the job.

The `id` of an event is TOKEN-NUMBER: who comes back with `Last-Event-ID` gets what came after it, and from another
server process, or when it was too long ago, the present state: the last step and preview of each picture.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from elit_serve.engine.order import StepRun
from elit_serve.errors import ElitError, InvalidInput
from elit_serve.jobs.desk import JobDesk
from elit_serve.jobs.events import Follower, JobEvent
from elit_serve.jobs.schemas import JobInfo, JobPreview, JobStarted, JobStep
from elit_serve.jobs.states import ENDED
from elit_serve.plans.formats import AnswerFormat
from elit_serve.server.event_response import EventResponse
from elit_serve.server.event_stream import KEEP_ALIVE_S
from elit_serve.text.digits import whole_number

END = "end"
MAX_ID_LENGTH = 100  # of an event


class JobEventStream(EventResponse):
    """`queued`, `started`, `step`s and `preview`s, and the job's last state as the last event."""

    def __init__(self, desk: JobDesk, job: JobInfo, owner: str, last_event_id: str | None, form: AnswerFormat) -> None:
        super().__init__(self._events())
        self._desk = desk
        self._job = job
        self._owner = owner
        self._form: AnswerFormat = form
        self._seen = _number_seen(last_event_id or "", desk.events.token)

    async def _events(self) -> AsyncIterator[str]:
        desk, job_id = self._desk, self._job.id
        follower = Follower()
        missed = desk.events.follow(job_id, follower)
        try:
            job = await desk.run(desk.get, job_id, self._owner)  # not before: it might end in between
            if self._seen < 0:
                yield self._written("queued", 0, self._job)
            for event in missed:
                if event.number > self._seen:
                    yield await run_in_threadpool(self._told, event)
            if job.state in ENDED:
                yield self._written(job.state, END, job)
                return
            async for text in self._coming(follower):
                yield text
            job = await desk.run(desk.get, job_id, self._owner)
            if job.state in ENDED:
                yield self._written(job.state, END, job)
        except ElitError:
            return  # the database is gone; they will come back
        finally:
            desk.events.leave(job_id, follower)

    async def _coming(self, follower: Follower) -> AsyncIterator[str]:
        while True:
            try:
                event = await asyncio.wait_for(follower.get(), KEEP_ALIVE_S)
            except TimeoutError:
                yield ": it is still to be done\n\n"
                continue
            if event is None:
                return
            yield await run_in_threadpool(self._told, event)

    def _told(self, event: JobEvent) -> str:
        what = event.what
        if what is None:
            return self._written("started", event.number, JobStarted(id=self._job.id))
        if isinstance(what, StepRun):
            step = JobStep(seed=what.seed, step=what.number, steps=what.num_steps, level=what.level)
            return self._written("step", event.number, step)
        preview = JobPreview(
            seed=what.seed, index=what.index, step=what.num_steps, output_format=self._form, b64_json=what.file
        )
        return self._written("preview", event.number, preview)

    def _written(self, name: str, number: int | str, data: BaseModel) -> str:
        return f"id: {self._desk.events.token}-{number}\nevent: {name}\ndata: {data.model_dump_json()}\n\n"


def _number_seen(last_event_id: str, token: str) -> int:
    """-1 for an id of another server process. Raises `InvalidInput` for what no server gave to an event."""
    of_server, _, text = last_event_id.partition("-")
    number = whole_number(text)
    if len(last_event_id) > MAX_ID_LENGTH or (of_server == token and number is None):
        raise InvalidInput("Last-Event-ID", last_event_id, "the id of an event of this job")
    return -1 if number is None or of_server != token else number
