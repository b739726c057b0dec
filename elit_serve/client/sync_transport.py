"""Requests and streams over httpx, with retries."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import TypeVar

import httpx

from elit_serve.client.calls import CONNECT_TIMEOUT_S, Call, base_url, key_headers
from elit_serve.client.event_stream import Event, EventParser
from elit_serve.client.replies import Reply, checked
from elit_serve.client.retries import Attempts, Retries
from elit_serve.clock import Clock
from elit_serve.errors import ConnectionFailed, ConnectionLost, ServerProblem, ServerUnreachable

T = TypeVar("T")


class Transport:
    """Carries calls to one server; usable from several threads. Parameters as those of `Client`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        retries: Retries,
        max_connections: int | None,
        sleep: Callable[[float], None],
        clock: Clock,
    ) -> None:
        self.url = base_url(url)
        # Waiting for a free connection is no failure of the server's, so it has no limit of its own. All idle
        # connections are kept, so that no request pays for connecting twice.
        self._http = httpx.Client(
            headers=key_headers(api_key),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=None),
        )
        self._retries = retries
        self._clock = clock
        self.sleep = sleep

    def close(self) -> None:
        self._http.close()

    def attempts(self, call: Call) -> Attempts:
        return Attempts(call=call, retries=self._retries, clock=self._clock)

    def send(self, call: Call) -> Reply:
        """A successful answer, or `ServerProblem` or `ServerUnreachable`."""
        return self._retried(call, self._answer)

    def events(self, call: Call) -> Generator[tuple[Reply, Event], None, None]:
        """What a stream holds, which is opened at the first step; each with the head of the answer."""
        response = self._retried(call, self._open)
        reply, parser = _reply(response), EventParser()
        with closing(response), _errors_of(reply.url):
            for chunk in response.iter_bytes():
                for event in parser.feed(chunk):
                    yield reply, event

    def _retried(self, call: Call, attempt: Callable[[Call], T]) -> T:
        attempts = self.attempts(call)
        while True:
            try:
                return attempt(call)
            except (ServerProblem, ServerUnreachable) as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            self.sleep(wait_s)

    def _answer(self, call: Call) -> Reply:
        url = self.url + call.path
        with _errors_of(url):
            response = self._http.request(call.method, url, json=call.body, headers=call.headers)
        return checked(_reply(response, response.content))

    def _open(self, call: Call) -> httpx.Response:
        """A successful answer of which nothing but the head is read."""
        url = self.url + call.path
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
