"""Server-sent events of one job, for as long as somebody follows it; whoever leaves takes nothing from the job.

The `id` of an event is TOKEN-NUMBER: who comes back with `Last-Event-ID` gets what came after it, and from another
server process, or when it was too long ago, the present state: the last step and preview of each picture.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from elit_serve.engine.picture import StepRun
from elit_serve.errors import ElitError, InvalidInput
from elit_serve.http.events import EventStream, event
from elit_serve.jobs.desk import JobDesk
from elit_serve.jobs.events import Follower, Happening
from elit_serve.jobs.schemas import JobInfo, JobPreview, JobStarted, JobStep
from elit_serve.jobs.states import ENDED
from elit_serve.text.digits import whole_number

END = "end"
MAX_ID_LENGTH = 100  # of an event


class JobEventStream(EventStream):
    """`queued`, `started`, `step`s and `preview`s, and the job's last state as the last event.

    prefix: the path under which the follower reaches the server.
    """

    def __init__(self, desk: JobDesk, job: JobInfo, owner: str, last_event_id: str | None, *, prefix: str = "") -> None:
        super().__init__(self._events())
        self._desk = desk
        self._job = job
        self._owner = owner
        self._prefix = prefix
        self._format = desk.preview_format(job)
        self._seen = _number_seen(last_event_id or "", desk.events.token)

    async def _events(self) -> AsyncIterator[bytes]:
        desk, job_id = self._desk, self._job.id
        follower = Follower()
        missed = desk.events.follow(job_id, follower)
        try:
            job = await desk.run(desk.get, job_id, self._owner)  # not before: it might end in between
            if self._seen < 0:
                yield self._written("queued", 0, self._job.below(self._prefix))
            for happening in missed:
                if happening.number > self._seen:
                    yield await run_in_threadpool(self._told, happening)
            if job.state in ENDED:
                yield self._written(job.state, END, job.below(self._prefix))
                return
            async for told in follower.events(self._told):
                yield told
            job = await desk.run(desk.get, job_id, self._owner)
            if job.state in ENDED:
                yield self._written(job.state, END, job.below(self._prefix))
        except ElitError:
            return  # the database is gone; they will come back
        finally:
            desk.events.leave(job_id, follower)

    def _told(self, happening: Happening) -> bytes:
        what = happening.what
        if what is None:
            return self._written("started", happening.number, JobStarted(id=self._job.id))
        if isinstance(what, StepRun):
            step = JobStep(seed=what.seed, step=what.number, steps=what.num_steps, level=what.level)
            return self._written("step", happening.number, step)
        preview = JobPreview(
            seed=what.seed, index=what.index, step=what.num_steps, output_format=self._format, b64_json=what.file
        )
        return self._written("preview", happening.number, preview)

    def _written(self, name: str, number: int | str, data: BaseModel) -> bytes:
        return event(name, data, event_id=f"{self._desk.events.token}-{number}")


def _number_seen(last_event_id: str, token: str) -> int:
    """-1 for an id of another server process. Raises `InvalidInput` for what no server gave to an event."""
    of_server, _, text = last_event_id.partition("-")
    number = whole_number(text)
    if len(last_event_id) > MAX_ID_LENGTH or (of_server == token and number is None):
        raise InvalidInput("Last-Event-ID", last_event_id, "the id of an event of this job")
    return -1 if number is None or of_server != token else number
