"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self, Unpack

from elit_serve.client import requests
from elit_serve.client.answers import Generation, Health, Model, PartialImage, Plan
from elit_serve.client.blocking import done, steps
from elit_serve.client.core import Core
from elit_serve.client.httpx_transport import HttpxTransport
from elit_serve.client.job_answers import Job, JobEvent
from elit_serve.client.job_pages import JobPages
from elit_serve.client.options import GenerateOptions, JobOptions, PlanOptions, StreamOptions
from elit_serve.client.retries import NO_RETRIES, Retries
from elit_serve.client.transport import TIMEOUT_S
from elit_serve.clock import Clock


class Client:
    """Talks to one server; usable from several threads.

    timeout_s: the longest silence of the server; a picture may wait in a queue for long.
    max_connections: at once; None is no limit.
    jobs: pictures that are made later.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        retries: Retries = NO_RETRIES,
        max_connections: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Clock | None = None,
    ) -> None:
        async def blocking_sleep(seconds: float) -> None:
            sleep(seconds)

        transport = HttpxTransport(url, api_key=api_key, timeout_s=timeout_s, max_connections=max_connections)
        self._core = Core(transport, retries=retries, sleep=blocking_sleep, clock=clock)
        self.jobs = Jobs(self._core)

    def generate(self, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a class. Blocks until they are there, or raises."""
        return done(self._core.send(requests.generate(options)))

    def stream(self, **options: Unpack[StreamOptions]) -> Generator[PartialImage | Generation, None, None]:
        """One picture while it is made: `partial_images` previews as they come, and at last the generation.

        Raises at the first step if the request is refused. Closing the iterator drops the request.
        """
        return steps(self._core.follow(requests.stream(options)))

    def finish(self, request_id: str) -> None:
        """Stop now and keep what there is: has the pictures of this id, which `generate` or `stream` still waits for,
        end with the fewest steps that they allow.

        Raises `ServerProblem` if nobody waits for them (`request-not-found`), or nothing is there yet (`not-begun`).
        """
        done(self._core.send(requests.finish(request_id)))

    def plan(self, **options: Unpack[PlanOptions]) -> Plan:
        """What would become of a request now; nothing is made."""
        return done(self._core.send(requests.plan(options)))

    def models(self) -> tuple[Model, ...]:
        return done(self._core.send(requests.models()))

    def health(self) -> Health:
        """Raises `ServerProblem` when the engine is down."""
        return done(self._core.send(requests.health()))

    def metrics(self) -> str:
        """The text that Prometheus scrapes."""
        return done(self._core.send(requests.metrics()))

    def ready(self) -> bool:
        """Whether to send requests: the server has warmed up, and is not being stopped."""
        return done(self._core.is_ready())

    def close(self) -> None:
        done(self._core.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()


class Jobs:
    """Pictures that a server makes later, and keeps for a while."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def create(self, *, idempotency_key: str | None = None, **options: Unpack[JobOptions]) -> Job:
        """A job that is stored. The same request with the same key gives the same job; by default each has a new key,
        under which retries are sent."""
        return done(self._core.send(requests.create_job(options, idempotency_key)))

    def get(self, job_id: str) -> Job:
        return done(self._core.send(requests.get_job(job_id)))

    def cancel(self, job_id: str) -> Job:
        """Ends it, if it has not ended."""
        return done(self._core.send(requests.cancel_job(job_id)))

    def finish(self, job_id: str) -> Job:
        """Has it end with the fewest steps that its pictures allow, and keeps what they are then.

        Raises `ServerProblem` if it has ended (`job-ended`), or nothing of it is there yet (`not-begun`).
        """
        return done(self._core.send(requests.finish_job(job_id)))

    def list(
        self, *, state: str | None = None, limit: int = requests.JOBS_PER_PAGE, cursor: str | None = None
    ) -> JobPages:
        """The newest first. The page holds its jobs as `data`; iterating goes on over those of all pages, which are
        fetched as they are needed.

        state: only jobs in this state. limit: jobs in a page, 1 to 100. cursor: `next_cursor` of the page before.
        """
        return JobPages(done(self._core.job_pages(state, limit, cursor)))

    def image(self, job_id: str, index: int = 0) -> bytes:
        """The file of one of the pictures of a job that is done."""
        return done(self._core.send(requests.job_image(job_id, index)))

    def events(self, job_id: str) -> Generator[JobEvent, None, None]:
        """What happens to a job; the last event is the job as it ended. Follows it over lost connections, and over
        restarts of the server, as far as the client may try again."""
        return steps(self._core.follow(requests.job_events(job_id)))

    def wait(self, job_id: str) -> Job:
        """The job, once it has ended."""
        return done(self._core.ended_job(job_id))
