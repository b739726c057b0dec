"""What both clients do: requests with retries, streams to their last event, pages. Over any transport.

It is written once, for asyncio. `blocking` runs it without an event loop, over a transport that blocks.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from elit_serve.client import requests
from elit_serve.client.event_stream import Event, EventParser
from elit_serve.client.job_answers import Job, JobPage
from elit_serve.client.job_pages import AsyncJobPages
from elit_serve.client.replies import Reply, cut_off
from elit_serve.client.requests import AnswerRequest, HttpRequest, StreamRequest
from elit_serve.client.retries import Attempts, Retries
from elit_serve.client.transport import Transport
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.errors import ConnectionLost, ServerProblem, ServerUnreachable

T = TypeVar("T")


class Core:
    """sleep: between the tries of one request; `retries` and `clock` say how long, and how often."""

    def __init__(
        self, transport: Transport, *, retries: Retries, sleep: Callable[[float], Awaitable[None]], clock: Clock | None
    ) -> None:
        self._transport = transport
        self._retries = retries
        self._sleep = sleep
        self._clock = clock or MonotonicClock()

    async def close(self) -> None:
        await self._transport.close()

    async def send(self, request: AnswerRequest[T]) -> T:
        """What the answer means. Raises `ServerProblem` or `ServerUnreachable`."""
        return request.read(await self._retried(request, self._transport.answer))

    async def follow(self, request: StreamRequest[T]) -> AsyncGenerator[T, None]:
        """What a stream tells, which is opened at the first step, to its last event. One that resumes is taken up where
        a connection broke, as often as retries allow without an event in between."""
        attempts = self._attempts(request)
        while True:
            try:
                async with aclosing(self._events(request)) as events:
                    async for head, event in events:
                        if request.resumes:
                            request, attempts = request.after(event.id), self._attempts(request)
                        told = request.read(head, event)
                        yield told
                        if request.is_last(told):
                            return
                raise cut_off(self._transport.url + request.path)
            except ConnectionLost as error:
                wait_s = attempts.wait_s(error) if request.resumes else None
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    async def is_ready(self) -> bool:
        """False for an answer that is an error."""
        try:
            return await self.send(requests.readiness())
        except ServerProblem:
            return False

    async def ended_job(self, job_id: str) -> Job:
        """The job, once it has ended."""
        async with aclosing(self.follow(requests.job_events(job_id))) as events:
            *_, last = [event async for event in events if isinstance(event, Job)]
        return last

    async def job_pages(self, state: str | None, limit: int, cursor: str | None) -> AsyncJobPages:
        """The first page after the cursor."""

        async def fetch(cursor: str | None) -> JobPage:
            return await self.send(requests.job_page(state, limit, cursor))

        return AsyncJobPages(await fetch(cursor), fetch)

    async def _events(self, request: HttpRequest) -> AsyncGenerator[tuple[Reply, Event], None]:
        """Each with the head of the answer."""
        opened, parser = await self._retried(request, self._transport.open), EventParser()
        async with aclosing(opened.chunks) as chunks:
            async for chunk in chunks:
                for event in parser.feed(chunk):
                    yield opened.head, event

    async def _retried(self, request: HttpRequest, attempt: Callable[[HttpRequest], Awaitable[T]]) -> T:
        attempts = self._attempts(request)
        while True:
            try:
                return await attempt(request)
            except (ServerProblem, ServerUnreachable) as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            await self._sleep(wait_s)

    def _attempts(self, request: HttpRequest) -> Attempts:
        return Attempts(request=request, retries=self._retries, clock=self._clock)
