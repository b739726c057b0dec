"""What the routes share, and how a request for pictures is run to its end."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from elit_serve.clock import Clock
from elit_serve.engine.jobs import Job, Outcome
from elit_serve.engine.open_plans import OpenPlans
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.errors import ElitError
from elit_serve.pictures import FILE_QUALITY
from elit_serve.scheduler import CostTable
from elit_serve.server.arrival_log import ArrivalLog
from elit_serve.server.generation import Form, answer, image_quality, job_of, open_plans_of
from elit_serve.server.metrics import Metrics
from elit_serve.server.schemas import GenerateRequest, GenerateResponse
from elit_serve.server.settings import Settings


@dataclass(frozen=True, kw_only=True)
class Service:
    """What the routes share. open_plans: for requests that leave it open how they are made; None without measurements,
    and under the fixed policy."""

    pipeline: Pipeline
    settings: Settings
    cost: CostTable
    open_plans: OpenPlans | None
    worker: Worker
    metrics: Metrics
    arrival_log: ArrivalLog | None
    clock: Clock


async def make(
    request: Request, service: Service, body: GenerateRequest, form: Form, *, file_quality: int = FILE_QUALITY
) -> GenerateResponse | None:
    """The pictures that `body` asks for; None, with the work given up, when the caller has left.

    file_quality: of JPEG and lossy WebP, 0 to 100.
    """
    pipeline, arrived_s = service.pipeline, service.clock.now()
    job = await run_in_threadpool(  # drawing noise takes a while
        job_of, body, form, pipeline, service.cost, service.settings, arrived_s=arrived_s, file_quality=file_quality
    )
    if service.arrival_log is not None:
        service.arrival_log.record(body, job, pipeline.config.spec.latents_per_group)
    open_plans = open_plans_of(body, service.open_plans, service.settings)
    outcome = await _outcome(request, service, job, open_plans)
    if outcome is None:
        return None
    total_ms = 1000 * (service.clock.now() - arrived_s)
    return answer(body, outcome, form, pipeline=pipeline, total_ms=total_ms)


async def _outcome(request: Request, service: Service, job: Job, open_plans: OpenPlans | None) -> Outcome | None:
    """Runs a job; None, with the job given up, when its caller has left. Counts what becomes of it."""
    try:
        future = service.worker.submit(job, open_plans)
    except ElitError as error:
        service.metrics.refused(error)
        raise
    try:
        outcome = await _unless_disconnected(request, future)
    except ElitError as error:
        service.metrics.ended(error)
        raise
    if outcome is None:
        service.metrics.generations.labels("cancelled").inc()
    else:
        qualities = [image_quality(image, outcome.job, service.pipeline) for image in outcome.images]
        service.metrics.done(outcome, qualities)
    return outcome


async def _unless_disconnected(request: Request, future: Future[Outcome]) -> Outcome | None:
    waiting = asyncio.wrap_future(future)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        either: set[asyncio.Future[Any]] = {waiting, leaving}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return waiting.result() if waiting.done() else None
    finally:
        waiting.cancel()  # and `future` with it, which gives the job up
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
