"""Sends requests to a server and notes what becomes of them: at planned times, or so that the server is never idle.

Open loop: arrivals never wait for answers, and latency runs from the planned arrival, so that whatever delays a
request counts, this client included. Closed loop: a number of callers, each of whom asks again once answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from elit_serve.client import AsyncClient, GenerateOptions, Generation
from elit_serve.clock import Clock
from elit_serve.errors import ServerProblem, ServerUnreachable

LEAD_S = 0.05  # before the first arrival, so that preparing the others does not delay it
REFUSALS = frozenset({429, 503})


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request before it is sent.

    at_s: when, in seconds from the start of the run; a closed loop has no use for it.
    label: class id.
    latency_ms: the target, or None.
    """

    at_s: float
    label: int
    seed: int
    latency_ms: float | None = None


class Ending(StrEnum):
    """What may become of a request."""

    DONE = "done"
    REFUSED = "refused"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Record:
    """One request after its end. Times are seconds of one clock; `*_ms` are the server's own, None if not told.

    reason: the server's code for a request that is not done; `unreachable` without an answer.
    budget: what was granted, as a mean over steps and images.
    label, seed, steps, guidance, levels: make the pictures again; levels has one per step, for each image.
    expected_quality: of the plan at admission; quality: of what was done, as a mean over images.
    """

    planned_s: float
    sent_s: float
    ended_s: float
    latency_ms: float | None
    ending: Ending
    reason: str | None = None
    budget: float | None = None
    queue_ms: float | None = None
    compute_ms: float | None = None
    encode_ms: float | None = None
    total_ms: float | None = None
    label: int | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: Mapping[str, object] | None = None
    levels: tuple[tuple[int, ...], ...] | None = None
    expected_quality: float | None = None
    quality: float | None = None

    @property
    def e2el_ms(self) -> float:
        """From the planned arrival to the end."""
        return 1000 * (self.ended_s - self.planned_s)

    @property
    def is_done(self) -> bool:
        return self.ending is Ending.DONE

    @property
    def is_on_time(self) -> bool:
        """Done within its target, by this client's clock; without a target, done."""
        return self.is_done and (self.latency_ms is None or self.e2el_ms <= self.latency_ms)

    @property
    def overhead_ms(self) -> float | None:
        """What the client saw beyond what the server counted: late sending, connecting, transfer, parsing."""
        return None if self.total_ms is None else self.e2el_ms - self.total_ms

    @property
    def added_ms(self) -> float | None:
        """What the client saw beyond waiting for the device, computing and encoding: all that HTTP adds."""
        if self.queue_ms is None or self.compute_ms is None or self.encode_ms is None:
            return None
        return self.e2el_ms - self.queue_ms - self.compute_ms - self.encode_ms


async def replay(
    client: AsyncClient, calls: Sequence[Call], common: GenerateOptions, *, clock: Clock
) -> tuple[Record, ...]:
    """Sends each call at its time, whatever has become of the others. Records come in the order of the calls."""
    start_s = clock.now() + LEAD_S
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_send(client, call, common, start_s + call.at_s, clock)) for call in calls]
    return tuple(task.result() for task in tasks)


async def saturate(
    client: AsyncClient,
    calls: Iterable[Call],
    common: GenerateOptions,
    *,
    callers: int,
    total: int,
    clock: Clock,
) -> tuple[Record, ...]:
    """Keeps `callers` calls in flight until `total` have ended, and gives the rest up. Records come as they ended."""
    upcoming = iter(calls)
    ended: list[Record] = []
    pending: set[asyncio.Task[Record]] = set()
    try:
        while len(ended) < total:
            while len(pending) < callers:
                pending.add(asyncio.create_task(_send(client, next(upcoming), common, clock.now(), clock)))
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            ended += [task.result() for task in done]
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
    return tuple(sorted(ended, key=lambda record: record.ended_s)[:total])


async def _send(client: AsyncClient, call: Call, common: GenerateOptions, planned_s: float, clock: Clock) -> Record:
    await asyncio.sleep(max(0.0, planned_s - clock.now()))
    sent_s = clock.now()
    generation, ending, reason = await _ending(client, call, common)
    return Record(
        planned_s=planned_s,
        sent_s=sent_s,
        ended_s=clock.now(),
        latency_ms=call.latency_ms,
        ending=ending,
        reason=reason,
        budget=_mean_budget(generation) if generation else None,
        queue_ms=generation.queue_ms if generation else None,
        compute_ms=generation.compute_ms if generation else None,
        encode_ms=generation.encode_ms if generation else None,
        total_ms=generation.total_ms if generation else None,
        label=call.label,
        seed=call.seed,
        steps=generation.steps if generation else None,
        guidance=generation.guidance if generation else None,
        levels=tuple(image.levels for image in generation.images) if generation else None,
        expected_quality=generation.expected_quality if generation else None,
        quality=_mean_quality(generation) if generation else None,
    )


async def _ending(
    client: AsyncClient, call: Call, common: GenerateOptions
) -> tuple[Generation | None, Ending, str | None]:
    options: GenerateOptions = {**common, "label": call.label, "seed": call.seed, "latency_ms": call.latency_ms}
    try:
        return await client.generate(**options), Ending.DONE, None
    except ServerProblem as problem:
        return None, ending_of(problem), problem.reason
    except ServerUnreachable:
        return None, Ending.FAILED, "unreachable"


def ending_of(problem: ServerProblem) -> Ending:
    """A server that says no at once has refused; one that ran out of time has not."""
    if problem.status in REFUSALS or problem.min_latency_ms is not None:
        return Ending.REFUSED
    return Ending.EXPIRED if problem.status == 504 else Ending.FAILED


def _mean_budget(generation: Generation) -> float:
    return sum(image.budget for image in generation.images) / len(generation.images)


def _mean_quality(generation: Generation) -> float | None:
    qualities = [image.quality for image in generation.images if image.quality is not None]
    return sum(qualities) / len(qualities) if qualities else None
