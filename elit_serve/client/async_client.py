"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Self, Unpack

from elit_serve.client import requests
from elit_serve.client.aiohttp_transport import AiohttpTransport
from elit_serve.client.answers import Generation, Health, Model, PartialImage, Plan
from elit_serve.client.core import Core
from elit_serve.client.job_answers import Job, JobEvent
from elit_serve.client.job_pages import AsyncJobList
from elit_serve.client.options import GenerateOptions, JobOptions, PlanOptions, StreamOptions
from elit_serve.client.retries import NO_RETRIES, Retries
from elit_serve.client.transport import TIMEOUT_S
from elit_serve.clock import Clock


class AsyncClient:
    """`Client` for asyncio: its methods do the same, and any number of requests may be under way at once."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        max_connections: int | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Clock | None = None,
    ) -> None:
        transport = AiohttpTransport(url, api_key=api_key, timeout_s=timeout_s, max_connections=max_connections)
        self._core = Core(transport, retries=retries, sleep=sleep, clock=clock)
        self.jobs = AsyncJobs(self._core)

    async def generate(self, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a class. A caller that is cancelled leaves, and the server drops its request."""
        return await self._core.send(requests.generate(options))

    def stream(self, **options: Unpack[StreamOptions]) -> AsyncGenerator[PartialImage | Generation, None]:
        """One picture while it is made: `partial_images` previews as they come, and at last the generation.

        Raises at the first step if the request is refused. Closing the iterator (`contextlib.aclosing`) drops it.
        """
        return self._core.follow(requests.stream(options))

    async def finish(self, request_id: str) -> None:
        """As `Client.finish`."""
        await self._core.send(requests.finish(request_id))

    async def plan(self, **options: Unpack[PlanOptions]) -> Plan:
        """What would become of a request now; nothing is made."""
        return await self._core.send(requests.plan(options))

    async def models(self) -> tuple[Model, ...]:
        return await self._core.send(requests.models())

    async def health(self) -> Health:
        """Raises `ServerProblem` when the engine is down."""
        return await self._core.send(requests.health())

    async def metrics(self) -> str:
        """The text that Prometheus scrapes."""
        return await self._core.send(requests.metrics())

    async def ready(self) -> bool:
        """Whether to send requests: the server has warmed up, and is not being stopped."""
        return await self._core.is_ready()

    async def close(self) -> None:
        await self._core.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self.close()


class AsyncJobs:
    """Pictures that a server makes later, and keeps for a while."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def create(self, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]) -> Job:
        """A job that is stored. The same request with the same key gives the same job."""
        return await self._core.send(requests.create_job(options, idempotency_key))

    async def get(self, job_id: str) -> Job:
        return await self._core.send(requests.get_job(job_id))

    async def cancel(self, job_id: str) -> Job:
        """Ends it, if it has not ended."""
        return await self._core.send(requests.cancel_job(job_id))

    async def finish(self, job_id: str) -> Job:
        """As `Jobs.finish`."""
        return await self._core.send(requests.finish_job(job_id))

    def list(
        self, *, state: str | None = None, limit: int = requests.JOBS_PER_PAGE, cursor: str | None = None
    ) -> AsyncJobList:
        """`await` gives a page, with its jobs as `data`; `async for` goes over the jobs of all pages."""
        return AsyncJobList(lambda: self._core.job_pages(state, limit, cursor))

    async def image(self, job_id: str, index: int = 0) -> bytes:
        """The file of one of the pictures of a job that is done."""
        return await self._core.send(requests.job_image(job_id, index))

    def events(self, job_id: str) -> AsyncGenerator[JobEvent, None]:
        """What happens to a job; the last event is the job as it ended. Follows it as `Jobs.events` does."""
        return self._core.follow(requests.job_events(job_id))

    async def wait(self, job_id: str) -> Job:
        """The job, once it has ended."""
        return await self._core.ended_job(job_id)
