"""Jobs for asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Unpack

from elit_serve.client.async_transport import AsyncTransport
from elit_serve.client.calls import (
    JOBS_PER_PAGE,
    job_call,
    job_events_call,
    job_image_call,
    jobs_page_call,
    one_job_call,
)
from elit_serve.client.job_answers import Job, JobEvent, JobPage, job_event
from elit_serve.client.job_pages import AsyncJobList, AsyncJobPages
from elit_serve.client.options import JobOptions
from elit_serve.client.replies import cut_off, parsed
from elit_serve.errors import ConnectionLost


class AsyncJobs:
    """Pictures that a server makes later, and keeps for a while."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(self, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]) -> Job:
        """A job that is stored. The same request with the same key gives the same job; by default each has a new key,
        under which retries are sent."""
        return parsed(Job, await self._transport.send(job_call(options, idempotency_key)))

    async def get(self, job_id: str) -> Job:
        return parsed(Job, await self._transport.send(one_job_call(job_id)))

    async def cancel(self, job_id: str) -> Job:
        """Ends it, if it has not ended."""
        return parsed(Job, await self._transport.send(one_job_call(job_id, method="DELETE")))

    def list(self, *, state: str | None = None, limit: int = JOBS_PER_PAGE, cursor: str | None = None) -> AsyncJobList:
        """The newest first. `await` gives a page, with its jobs as `data`; `async for` goes over the jobs of all pages,
        which are fetched as they are needed.

        state: only jobs in this state. limit: jobs in a page, 1 to 100. cursor: `next_cursor` of the page before.
        """

        async def fetch(cursor: str | None) -> JobPage:
            return parsed(JobPage, await self._transport.send(jobs_page_call(state, limit, cursor)))

        async def first() -> AsyncJobPages:
            return AsyncJobPages(await fetch(cursor), fetch)

        return AsyncJobList(first)

    async def image(self, job_id: str, index: int = 0) -> bytes:
        """The file of one of the pictures of a job that is done."""
        return (await self._transport.send(job_image_call(job_id, index))).content

    async def events(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """What happens to a job; the last event is the job as it ended. Follows it over lost connections, and over
        restarts of the server, as far as the client may try again."""
        last_event_id: str | None = None
        attempts = self._transport.attempts(job_events_call(job_id, None))
        while True:
            call = job_events_call(job_id, last_event_id)
            try:
                async with aclosing(self._transport.events(call)) as events:
                    async for reply, event in events:
                        last_event_id, attempts = event.id, self._transport.attempts(call)
                        told = job_event(reply, event)
                        yield told
                        if isinstance(told, Job) and told.has_ended:
                            return
                raise cut_off(self._transport.url + call.path)
            except ConnectionLost as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            await self._transport.sleep(wait_s)

    async def wait(self, job_id: str) -> Job:
        """The job, once it has ended."""
        async with aclosing(self.events(job_id)) as events:
            *_, last = [event async for event in events if isinstance(event, Job)]
        return last
