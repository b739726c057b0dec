"""Callers of many kinds, each of whom asks again as soon as it is answered, and what becomes of their requests."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field

from elit_serve.bench.load.sender import ending_of
from elit_serve.bench.load.subjects import Subject
from elit_serve.client import AsyncClient, GenerateOptions, Generation
from elit_serve.client.job_answers import JobStep
from elit_serve.client.options import Wishes
from elit_serve.clock import Clock
from elit_serve.errors import ServerProblem, ServerUnreachable
from elit_serve.files.records import RequestEnding

REFUSED_WAIT_S = 1.0  # where the server does not say
PINNED_BUDGETS = (0.25, 0.5, 1.0)
PROMISE_SCALES = (2.0, 12.0)  # targets over the full-budget latency alone
CANCELLED_JOBS = 0.25  # share of the jobs that are cancelled at once
FINISHED_JOBS = 0.25  # share of the jobs that are finished early, once a step has run
LEFT = "left"  # the caller did not wait for the answer


@dataclass(frozen=True, kw_only=True)
class EndedRequest:
    """A request after its end. ending: of `RequestEnding`, or `LEFT`. images: that it got."""

    ending: str
    images: int = 0
    reason: str | None = None
    retry_after_s: float = 0.0


@dataclass(kw_only=True)
class Tally:
    """All requests of a phase, by kind and ending. seconds: until the last one ended, during all of which the device
    had something to do."""

    seconds: float = 0.0
    endings: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    images: int = 0

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    def of(self, ending: str, *kinds: str) -> int:
        """How many requests of these kinds, or of all, ended so."""
        return sum(n for (kind, end), n in self.endings.items() if end == ending and (not kinds or kind in kinds))

    def sent(self, *kinds: str) -> int:
        return sum(n for (kind, _), n in self.endings.items() if not kinds or kind in kinds)


class Callers:
    """Draws requests. subjects: of their pictures. solo_ms: of a picture at full budget on an idle server."""

    def __init__(
        self, client: AsyncClient, *, subjects: Sequence[Subject], solo_ms: float, seed: int, clock: Clock
    ) -> None:
        self._client = client
        self._subjects = subjects
        self._solo_ms = solo_ms
        self._random = random.Random(seed)
        self._clock = clock
        self._kinds: Mapping[str, Callable[[], Awaitable[EndedRequest]]] = {
            "promised": self._promised,
            "best_effort": self._best_effort,
            "pinned": self._pinned,
            "leaving": self._leaving,
            "stream": self._stream,
            "job": self._job,
            "same": self._same,
        }

    async def ask(self, weights: Mapping[str, float], *, callers: int, seconds: float, wait: bool = False) -> Tally:
        """Keeps so many requests under way for so long. weights: of the kinds. wait: for the end of the last ones,
        which are given up otherwise, and not counted.

        They come within the first twentieth of that. Who is refused comes back after the time that the server asks
        for, or up to half of it later: callers do not march in step.
        """
        tally = Tally()
        began_s = self._clock.now()
        until_s = began_s + seconds
        tasks = [asyncio.create_task(self._ask_until(until_s, weights, tally, seconds / 20)) for _ in range(callers)]
        await asyncio.wait(tasks, timeout=None if wait else seconds)
        for task in tasks:
            task.cancel()
        for ending in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ending, Exception):
                raise ending
        tally.seconds = self._clock.now() - began_s
        return tally

    async def _ask_until(self, until_s: float, weights: Mapping[str, float], tally: Tally, spread_s: float) -> None:
        await asyncio.sleep(self._random.uniform(0, spread_s))
        while self._clock.now() < until_s:
            (kind,) = self._random.choices(list(weights), list(weights.values()))
            asked = await self._told(self._kinds[kind])
            tally.endings[kind, asked.ending] += 1
            if asked.reason is not None:
                tally.reasons[asked.reason] += 1
            tally.images += asked.images
            wait_s = asked.retry_after_s * self._random.uniform(1, 1.5)
            await asyncio.sleep(max(0.0, min(wait_s, until_s - self._clock.now())))

    async def _told(self, request: Callable[[], Awaitable[EndedRequest]]) -> EndedRequest:
        try:
            return await request()
        except ServerProblem as problem:
            wait_s = REFUSED_WAIT_S if problem.retry_after_s is None else problem.retry_after_s
            return EndedRequest(ending=ending_of(problem), reason=problem.reason, retry_after_s=wait_s)
        except ServerUnreachable as error:
            return EndedRequest(ending=RequestEnding.FAILED, reason=str(error))

    async def _promised(self) -> EndedRequest:
        return await self._generate(latency_ms=self._solo_ms * self._random.uniform(*PROMISE_SCALES))

    async def _best_effort(self) -> EndedRequest:
        latency_ms = self._solo_ms * self._random.uniform(*PROMISE_SCALES)
        return await self._generate(latency_ms=latency_ms, best_effort=True, n=2)

    async def _pinned(self) -> EndedRequest:
        return await self._generate(budget=self._random.choice(PINNED_BUDGETS))

    async def _same(self) -> EndedRequest:
        """Always the same work, whatever the load."""
        return await self._generate(budget=1.0)

    async def _leaving(self) -> EndedRequest:
        try:
            async with asyncio.timeout(self._random.uniform(0, 2 * self._solo_ms) / 1000):
                return await self._pinned()
        except TimeoutError:
            return EndedRequest(ending=LEFT)

    async def _stream(self) -> EndedRequest:
        async with aclosing(self._client.stream(**self._subject(), partial_images=2)) as events:
            *_, last = [event async for event in events]
        assert isinstance(last, Generation)
        return EndedRequest(ending=RequestEnding.DONE, images=len(last.images))

    async def _job(self) -> EndedRequest:
        job = await self._client.jobs.create(**self._subject())
        drawn = self._random.random()
        if drawn < CANCELLED_JOBS:
            job = await self._client.jobs.cancel(job.id)
        try:
            if CANCELLED_JOBS <= drawn < CANCELLED_JOBS + FINISHED_JOBS:
                await self._finish(job.id)
            job = job if job.has_ended else await self._client.jobs.wait(job.id)
        except asyncio.CancelledError:
            await self._client.jobs.cancel(job.id)  # which would be made otherwise
            raise
        ending = LEFT if job.state == "cancelled" else job.state
        return EndedRequest(ending=ending, images=len(job.result.images) if job.result else 0)

    async def _finish(self, job_id: str) -> None:
        """Once a step of it has run. It may just end by itself, or the server be too busy for that: then it is made."""
        with suppress(ServerProblem):
            async with aclosing(self._client.jobs.events(job_id)) as events:
                async for event in events:
                    if isinstance(event, JobStep):
                        break
            await self._client.jobs.finish(job_id)

    async def _generate(self, **options: object) -> EndedRequest:
        asked: GenerateOptions = {**self._subject(), **options}  # type: ignore[typeddict-item]
        generation = await self._client.generate(**asked)
        return EndedRequest(ending=RequestEnding.DONE, images=len(generation.images))

    def _subject(self) -> Wishes:
        of = self._subjects[self._random.randrange(len(self._subjects))]
        return {"label": of.label, "prompt": of.prompt, "seed": self._random.randrange(1 << 32)}
