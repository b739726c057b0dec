"""Sends requests to a server and notes what becomes of them: at planned times, or so that the server is never idle.

Open loop: arrivals never wait for answers, and latency runs from the planned arrival, so that whatever delays a
request counts, this client included. Closed loop: a number of callers, each of whom asks again once answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from elit_serve.client import AsyncClient, GenerateOptions, Generation
from elit_serve.clock import Clock
from elit_serve.errors import ServerProblem, ServerUnreachable
from elit_serve.files.records import RequestEnding, RequestRecord

LEAD_S = 0.05  # before the first arrival, so that preparing the others does not delay it
REFUSALS = frozenset({429, 503})


@dataclass(frozen=True, kw_only=True)
class PlannedCall:
    """One request before it is sent.

    at_s: when, in seconds from the start of the run; a closed loop has no use for it.
    label: class id, or prompt: words; the other is None.
    latency_ms: the target, or None. size: of the picture; None is the model's default.
    """

    at_s: float
    seed: int
    label: int | None = None
    prompt: str | None = None
    latency_ms: float | None = None
    size: str | None = None


async def replay(
    client: AsyncClient, calls: Sequence[PlannedCall], common: GenerateOptions, *, clock: Clock
) -> tuple[RequestRecord, ...]:
    """Sends each call at its time, whatever has become of the others. Records come in the order of the calls."""
    start_s = clock.now() + LEAD_S
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_send(client, call, common, start_s + call.at_s, clock)) for call in calls]
    return tuple(task.result() for task in tasks)


async def saturate(
    client: AsyncClient,
    calls: Iterable[PlannedCall],
    common: GenerateOptions,
    *,
    callers: int,
    total: int,
    clock: Clock,
) -> tuple[RequestRecord, ...]:
    """Keeps `callers` calls in flight until `total` have ended, and gives the rest up. Records come as they ended."""
    upcoming = iter(calls)
    ended: list[RequestRecord] = []
    pending: set[asyncio.Task[RequestRecord]] = set()
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


async def _send(
    client: AsyncClient, call: PlannedCall, common: GenerateOptions, planned_s: float, clock: Clock
) -> RequestRecord:
    await asyncio.sleep(max(0.0, planned_s - clock.now()))
    sent_s = clock.now()
    generation, ending, reason = await _ending(client, call, common)
    return RequestRecord(
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
        prompt=call.prompt,
        seed=call.seed,
        size=generation.size if generation else call.size,
        steps=generation.steps if generation else None,
        guidance=generation.guidance if generation else None,
        skips=generation.skips if generation else None,
        levels=tuple(image.levels for image in generation.images) if generation else None,
        strides=tuple(image.strides for image in generation.images) if generation else None,
        expected_quality=generation.expected_quality if generation else None,
        quality=_mean_quality(generation) if generation else None,
    )


async def _ending(
    client: AsyncClient, call: PlannedCall, common: GenerateOptions
) -> tuple[Generation | None, RequestEnding, str | None]:
    options: GenerateOptions = {
        **common,
        "label": call.label,
        "prompt": call.prompt,
        "seed": call.seed,
        "latency_ms": call.latency_ms,
        "size": call.size,
    }
    try:
        return await client.generate(**options), RequestEnding.DONE, None
    except ServerProblem as problem:
        return None, ending_of(problem), problem.reason
    except ServerUnreachable:
        return None, RequestEnding.FAILED, "unreachable"


def ending_of(problem: ServerProblem) -> RequestEnding:
    """A server that says no at once has refused; one that ran out of time has not."""
    if problem.status in REFUSALS or problem.min_latency_ms is not None:
        return RequestEnding.REFUSED
    return RequestEnding.EXPIRED if problem.status == 504 else RequestEnding.FAILED


def _mean_budget(generation: Generation) -> float:
    return sum(image.budget for image in generation.images) / len(generation.images)


def _mean_quality(generation: Generation) -> float | None:
    qualities = [image.quality for image in generation.images if image.quality is not None]
    return sum(qualities) / len(qualities) if qualities else None
