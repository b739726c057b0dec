"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from types import TracebackType
from typing import Self, Unpack

from elit_serve.client.answers import Generation, Health, Model, ModelList, PartialImage, Plan
from elit_serve.client.calls import HEALTH, METRICS, MODELS, READINESS, TIMEOUT_S, generate_call, plan_call, stream_call
from elit_serve.client.options import GenerateOptions, PlanOptions, StreamOptions
from elit_serve.client.replies import cut_off, generation, parsed, streamed
from elit_serve.client.retries import NO_RETRIES, Retries
from elit_serve.client.sync_jobs import Jobs
from elit_serve.client.sync_transport import Transport
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.errors import ServerProblem


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
        self._transport = Transport(
            url,
            api_key=api_key,
            timeout_s=timeout_s,
            retries=retries,
            max_connections=max_connections,
            sleep=sleep,
            clock=clock or MonotonicClock(),
        )
        self.jobs = Jobs(self._transport)

    def generate(self, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a class. Blocks until they are there, or raises."""
        return generation(self._transport.send(generate_call(options)))

    def stream(self, **options: Unpack[StreamOptions]) -> Generator[PartialImage | Generation, None, None]:
        """One picture while it is made: `partial_images` previews as they come, and at last the generation.

        Raises at the first step if the request is refused. Closing the iterator drops the request.
        """
        with closing(self._transport.events(stream_call(options))) as events:
            for reply, event in events:
                told = streamed(reply, event)
                yield told
                if isinstance(told, Generation):
                    return
        raise cut_off(self._transport.url)

    def plan(self, **options: Unpack[PlanOptions]) -> Plan:
        """What would become of a request now; nothing is made."""
        return parsed(Plan, self._transport.send(plan_call(options)))

    def models(self) -> tuple[Model, ...]:
        return parsed(ModelList, self._transport.send(MODELS)).data

    def health(self) -> Health:
        """Raises `ServerProblem` when the engine is down."""
        return parsed(Health, self._transport.send(HEALTH))

    def metrics(self) -> str:
        """The text that Prometheus scrapes."""
        return self._transport.send(METRICS).content.decode()

    def ready(self) -> bool:
        """Whether to send requests: the server has warmed up, and is not being stopped."""
        try:
            self._transport.send(READINESS)
        except ServerProblem:
            return False
        return True

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()
