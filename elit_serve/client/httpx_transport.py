"""Over httpx, which blocks: its coroutines never wait for an event loop, and are run without one (`blocking`)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import closing, contextmanager

import httpx

from elit_serve.client.replies import Reply, checked
from elit_serve.client.requests import HttpRequest
from elit_serve.client.transport import CONNECT_TIMEOUT_S, OpenReply, base_url, key_headers
from elit_serve.errors import ConnectionFailed, ConnectionLost, ServerUnreachable


class HttpxTransport:
    """Usable from several threads. Parameters as those of `Client`."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float, max_connections: int | None) -> None:
        self.url = base_url(url)
        # Waiting for a free connection is no failure of the server's, so it has no limit of its own. All idle
        # connections are kept, so that no request pays for connecting twice.
        self._http = httpx.Client(
            headers=key_headers(api_key),
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S, pool=None),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=None),
        )

    async def close(self) -> None:
        self._http.close()

    async def answer(self, request: HttpRequest) -> Reply:
        url = self.url + request.path
        with _errors_of(url):
            response = self._http.request(request.method, url, json=request.body, headers=request.headers)
        return checked(_reply(response, response.content))

    async def open(self, request: HttpRequest) -> OpenReply:
        url = self.url + request.path
        with _errors_of(url):
            built = self._http.build_request(request.method, url, json=request.body, headers=request.headers)
            response = self._http.send(built, stream=True)
            if not response.is_success:
                checked(_reply(response, response.read()))
        return OpenReply(_reply(response), _chunks(response))


async def _chunks(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    with closing(response), _errors_of(str(response.url)):
        for chunk in response.iter_bytes():
            yield chunk


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
