"""Guests: what answers routes of its own beside the server's, and has the server make its pictures.

The server knows nothing else of them, and they know nothing of the server but a `GuestPort`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from elit_serve.engine.picture import Outcome, Preview, StepRun
from elit_serve.errors import ElitError, EngineStopped
from elit_serve.http.schemas import GenerateRequest, GenerateResponse
from elit_serve.plans.formats import AnswerFormat
from elit_serve.server.orders import Taken, format_of
from elit_serve.server.service import Service, admit, facts_of, hand_over, order_for
from elit_serve.server.settings import Settings


class OpenGuest(Protocol):
    """A guest of one app."""

    def start(self) -> None:
        """The engine is ready."""

    def stop(self) -> None:
        """The engine has ended, or takes nothing more, while requests may still come; may be called again."""

    def close(self) -> None:
        """No more requests come."""


@dataclass(frozen=True, kw_only=True)
class Guest:
    """name: under which its routes find it in the state of the app. open: raises `InvalidInput` for settings that
    cannot be used."""

    name: str
    router: APIRouter
    open: Callable[[GuestPort, Settings, CollectorRegistry], OpenGuest]


class GuestPort:
    """Has pictures made for requests that do not wait for them; used by any thread."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._engines = service.engines

    @property
    def is_open(self) -> bool:
        """Whether more work is taken."""
        return self._engines.are_alive and not self._engines.are_draining

    @property
    def is_ready(self) -> bool:
        """Whether it is, and run without delay."""
        return self._engines.are_ready

    @property
    def has_died(self) -> bool:
        """Whether an engine ended by an error: what was under way then failed with `EngineStopped`."""
        return self._engines.have_died

    @property
    def max_batch(self) -> int:
        """Pictures that can be in a step at the same time, whichever engine runs it; on all of its devices."""
        limit = self._service.settings.max_batch
        most = [(engine.cost.max_batch, engine.worker.num_devices) for engine in self._engines.values()]
        return min(min(limit or batch, batch) * num_devices for batch, num_devices in most)

    def picture_s(self, request: GenerateRequest) -> float:
        """Seconds that its engine takes for a picture of the recommended kind."""
        engine = self._engines.of(request.model)
        plan, shape = engine.model.plan(), engine.model.sizes.shape_of(request.size).name
        return engine.cost.alone_ms(shape, plan.levels, (None,) * plan.num_steps) / 1000

    def output_format(self, request: GenerateRequest) -> AnswerFormat:
        """Of the files that a request gets."""
        return format_of(request, self._engines.of(request.model).model)

    def check(self, request: GenerateRequest) -> None:
        """Raises why such a request can never be taken. One that can counts as an arrival."""
        service, engine = self._service, self._engines.of(request.model)
        order = order_for(engine, request, arrived_s=service.clock.now())
        if service.arrival_log is not None:
            service.arrival_log.record(request, order, engine.model.budgets)

    def refused(self, request: GenerateRequest, error: ElitError) -> None:
        """Counts a request that the guest itself has not taken."""
        self._service.metrics.of(self._engines.of(request.model).name).refused(error)

    def submit(
        self,
        request: GenerateRequest,
        *,
        name: str,
        owner: str | None,
        waited_s: float,
        is_awaited: bool,
        num_previews: int,
        on_step: Callable[[StepRun], None],
        on_preview: Callable[[Preview], None] | None,
    ) -> Submission:
        """Has the engine take a request, or raises why not.

        name: under which traces tell of it. owner: the name of the key that it came with. waited_s: how long ago it
        came. is_awaited: somebody waits to hear whether it is taken, so that counts, as does its owner's share.
        num_previews, on_step, on_preview: see `Worker.submit`.
        """
        service, engine = self._service, self._engines.of(request.model)
        order = order_for(engine, request, arrived_s=service.clock.now() - waited_s)
        order = replace(order, owner=owner, num_previews=num_previews)
        send = partial(admit, service) if is_awaited else hand_over
        taken = send(engine, request, order, on_preview=on_preview, on_step=on_step)
        return Submission(service, name, taken)


class Submission:
    """Pictures that are being made for a guest."""

    def __init__(self, service: Service, name: str, taken: Taken) -> None:
        self._service = service
        self._name = name
        self._taken = taken

    @property
    def future(self) -> Future[Outcome]:
        """Done with the pictures. Cancelling it gives them up: the engine is free of them within a step."""
        return self._taken.future

    def finish(self) -> bool:
        """Has them end with the fewest steps that their state allows; False if no step of them has run."""
        return self._taken.engine.worker.hurry(self._taken.future)

    def answer(self) -> GenerateResponse | None:
        """What was made, or None if it was given up, once the future is done. Raises why it was not made. To be called
        once, for it is counted and traced."""
        service, taken = self._service, self._taken
        metrics = service.metrics.of(taken.engine.name)
        if service.tracing is not None:
            service.tracing.job_ended(self._name, taken)
        if taken.future.cancelled():
            metrics.cancelled()
            return None
        try:
            return facts_of(service, taken, taken.future.result())
        except EngineStopped:
            raise  # it may be made by the next server
        except ElitError as error:
            metrics.ended(error)
            raise
