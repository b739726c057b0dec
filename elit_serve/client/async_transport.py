"""Requests and streams over aiohttp, with retries."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp

from elit_serve.client.calls import CONNECT_TIMEOUT_S, Call, base_url, key_headers
from elit_serve.client.event_stream import Event, EventParser
from elit_serve.client.replies import Reply, checked
from elit_serve.client.retries import Attempts, Retries
from elit_serve.clock import Clock
from elit_serve.errors import ConnectionFailed, ConnectionLost, ServerProblem, ServerUnreachable

T = TypeVar("T")

KEEP_ALIVE_S = 4.0  # of idle connections: many servers close them after 5 s, and a request must not meet that


class AsyncTransport:
    """Carries calls to one server. Parameters as those of `AsyncClient`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        retries: Retries,
        max_connections: int | None,
        sleep: Callable[[float], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self.url = base_url(url)
        self._headers = key_headers(api_key)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s)
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None
        self._retries = retries
        self._clock = clock
        self.sleep = sleep

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def attempts(self, call: Call) -> Attempts:
        return Attempts(call=call, retries=self._retries, clock=self._clock)

    async def send(self, call: Call) -> Reply:
        """A successful answer, or `ServerProblem` or `ServerUnreachable`."""
        return await self._retried(call, self._answer)

    async def events(self, call: Call) -> AsyncGenerator[tuple[Reply, Event], None]:
        """What a stream holds, which is opened at the first step; each with the head of the answer."""
        response = await self._retried(call, self._open)
        reply, parser = _reply(response), EventParser()
        with _errors_of(reply.url):
            async with response:
                async for chunk in response.content.iter_any():
                    for event in parser.feed(chunk):
                        yield reply, event

    async def _retried(self, call: Call, attempt: Callable[[Call], Awaitable[T]]) -> T:
        attempts = self.attempts(call)
        while True:
            try:
                return await attempt(call)
            except (ServerProblem, ServerUnreachable) as error:
                wait_s = attempts.wait_s(error)
                if wait_s is None:
                    raise
            await self.sleep(wait_s)

    async def _answer(self, call: Call) -> Reply:
        with _errors_of(self.url + call.path):
            async with self._requested(call) as response:
                return checked(_reply(response, await response.read()))

    async def _open(self, call: Call) -> aiohttp.ClientResponse:
        """A successful answer of which nothing but the head is read."""
        with _errors_of(self.url + call.path):
            response = await self._requested(call)
            if not 200 <= response.status < 300:
                checked(_reply(response, await response.read()))
        return response

    def _requested(self, call: Call) -> aiohttp.client._RequestContextManager:
        if self._session is None:  # aiohttp wants to be opened by the loop that it runs in
            self._session = self._opened()
        return self._session.request(
            call.method, self.url + call.path, json=call.body, headers=call.headers, allow_redirects=False
        )

    def _opened(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(limit=self._max_connections or 0, keepalive_timeout=KEEP_ALIVE_S)
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=self._timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            proxy=_environment_proxy(self.url),
        )


def _reply(response: aiohttp.ClientResponse, content: bytes = b"") -> Reply:
    return Reply(str(response.url), response.status, response.reason or "", response.headers, content)


@contextmanager
def _errors_of(url: str) -> Iterator[None]:
    """aiohttp's errors as ours: by whether the server can have had the request."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise ConnectionFailed(url, error) from error
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError) as error:
        raise ConnectionLost(url, error) from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise ServerUnreachable(url, error) from error


def _environment_proxy(url: str) -> str | None:
    """The proxy that the environment names for a server; found once, where aiohttp would ask a thread each time."""
    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
