"""The client that blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Self, TypeVar, Unpack

import httpx

from elit_serve.client.answers import Generation, Health, Model, ModelList, PartialImage, Plan
from elit_serve.client.calls import (
    CONNECT_TIMEOUT_S,
    HEALTH,
    MODELS,
    READINESS,
    TIMEOUT_S,
    Call,
    base_url,
    generate_call,
    key_headers,
    plan_call,
    stream_call,
)
from elit_serve.client.event_stream import Event, EventParser
from elit_serve.client.options import GenerateOptions, PlanOptions, StreamOptions
from elit_serve.client.replies import Reply, checked, cut_off, generation, parsed, streamed
from elit_serve.client.retries import NO_RETRIES, Attempts, Retries
from elit_serve.clock import Clock, MonotonicClock
from elit_serve.errors import ConnectionFailed, ConnectionLost, ServerProblem, ServerUnreachable

T = TypeVar("T")


class Client:
    """Talks to one server; usable from several threads.

    timeout_s: the longest silence of the server; a picture may wait in a queue for long.
    max_connections: at once; None is no limit.
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
        self._url = base_url(url)
        # Waiting for a free connection is no failure of the server's, so it has no limit of its own. All idle
        # connections are kept, so that no request pays for connecting twice.
        self._http = httpx.Client(
            headers=key_headers(api_key),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=None),
        )
        self._retries = retries
        self._sleep = sleep
        self._clock = clock or MonotonicClock()

    def generate(self, **options: Unpack[GenerateOptions]) -> Generation:
        """Pictures of a class. Blocks until they are there, or raises."""
        return generation(self._send(generate_call(options)))

    def stream(self, **options: Unpack[StreamOptions]) -> Generator[PartialImage | Generation, None, None]:
        """One picture while it is made: `partial_images` previews as they come, and at last the generation.

        Raises at the first step if the request is refused. Closing the iterator drops the request.
        """
        with closing(self._events(stream_call(options))) as events:
            for reply, event in events:
                told = streamed(reply, event)
                yield told
                if isinstance(told, Generation):
                    return
        raise cut_off(self._url)

    def plan(self, **options: Unpack[PlanOptions]) -> Plan:
        """What would become of a request now; nothing is made."""
        return parsed(Plan, self._send(plan_call(options)))

    def models(self) -> tuple[Model, ...]:
        return parsed(ModelList, self._send(MODELS)).data

    def health(self) -> Health:
        """Raises `ServerProblem` when the engine is down."""
        return parsed(Health, self._send(HEALTH))

    def ready(self) -> bool:
        """Whether to send requests: the server has warmed up, and is not being stopped."""
        try:
            self._send(READINESS)
        except ServerProblem:
            return False
        return True

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _send(self, call: Call) -> Reply:
        return self._retried(call, self._answer)

    def _events(self, call: Call) -> Generator[tuple[Reply, Event], None, None]:
        response = self._retried(call, self._open)
        reply, parser = _reply(response), EventParser()
        with closing(response), _errors_of(reply.url):
            for chunk in response.iter_bytes():
                for event in parser.feed(chunk):
                    yield reply, event

    def _retried(self, call: Call, attempt: Callable[[Call], T]) -> T:
        attempts = Attempts(call=call, retries=self._retries, clock=self._clock)
        while True:
            try:
                return attempt(call)
            except (ServerProblem, ServerUnreachable) as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            self._sleep(wait_s)

    def _answer(self, call: Call) -> Reply:
        url = self._url + call.path
        with _errors_of(url):
            response = self._http.request(call.method, url, json=call.body, headers=call.headers)
        return checked(_reply(response, response.content))

    def _open(self, call: Call) -> httpx.Response:
        """A successful answer of which nothing but the head is read."""
        url = self._url + call.path
        request = self._http.build_request(call.method, url, json=call.body, headers=call.headers)
        with _errors_of(url):
            response = self._http.send(request, stream=True)
            if not response.is_success:
                checked(_reply(response, response.read()))
        return response


def _reply(response: httpx.Response, content: bytes = b"") -> Reply:
    return Reply(str(response.url), response.status_code, response.reason_phrase, response.headers, content)


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """httpx' errors as ours: by whether the server can have had the request."""
    try:
        yield
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise ConnectionFailed(url, error) from error
    except (httpx.NetworkError, httpx.RemoteProtocolError) as error:
        raise ConnectionLost(url, error) from error
    except httpx.HTTPError as error:
        raise ServerUnreachable(url, error) from error
