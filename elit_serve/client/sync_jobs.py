"""Jobs for the client that blocks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from typing import Unpack

from elit_serve.client.calls import (
    JOBS_PER_PAGE,
    job_call,
    job_events_call,
    job_image_call,
    jobs_page_call,
    one_job_call,
)
from elit_serve.client.job_answers import Job, JobEvent, JobPage, job_event
from elit_serve.client.job_pages import JobPages
from elit_serve.client.options import JobOptions
from elit_serve.client.replies import cut_off, parsed
from elit_serve.client.sync_transport import Transport
from elit_serve.errors import ConnectionLost


class Jobs:
    """Pictures that a server makes later, and keeps for a while."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]) -> Job:
        """A job that is stored. The same request with the same key gives the same job; by default each has a new key,
        under which retries are sent."""
        return parsed(Job, self._transport.send(job_call(options, idempotency_key)))

    def get(self, job_id: str) -> Job:
        return parsed(Job, self._transport.send(one_job_call(job_id)))

    def cancel(self, job_id: str) -> Job:
        """Ends it, if it has not ended."""
        return parsed(Job, self._transport.send(one_job_call(job_id, method="DELETE")))

    def list(self, *, state: str | None = None, limit: int = JOBS_PER_PAGE, cursor: str | None = None) -> JobPages:
        """The newest first. The page holds its jobs as `data`; iterating goes on over those of all pages, which are
        fetched as they are needed.

        state: only jobs in this state. limit: jobs in a page, 1 to 100. cursor: `next_cursor` of the page before.
        """

        def fetch(cursor: str | None) -> JobPage:
            return parsed(JobPage, self._transport.send(jobs_page_call(state, limit, cursor)))

        return JobPages(fetch(cursor), fetch)

    def image(self, job_id: str, index: int = 0) -> bytes:
        """The file of one of the pictures of a job that is done."""
        return self._transport.send(job_image_call(job_id, index)).content

    def events(self, job_id: str) -> Generator[JobEvent, None, None]:
        """What happens to a job; the last event is the job as it ended. Follows it over lost connections, and over
        restarts of the server, as far as the client may try again."""
        last_event_id: str | None = None
        attempts = self._transport.attempts(job_events_call(job_id, None))
        while True:
            call = job_events_call(job_id, last_event_id)
            try:
                with closing(self._transport.events(call)) as events:
                    for reply, event in events:
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
            self._transport.sleep(wait_s)

    def wait(self, job_id: str) -> Job:
        """The job, once it has ended."""
        *_, last = (event for event in self.events(job_id) if isinstance(event, Job))
        return last
