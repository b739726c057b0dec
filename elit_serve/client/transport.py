"""What the core needs of an HTTP library, and what both of them are told alike."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Protocol

import httpx

from elit_serve.client.replies import Reply
from elit_serve.client.requests import HttpRequest
from elit_serve.errors import InvalidInput

TIMEOUT_S = 600.0  # of an answer: a picture may wait in a queue for long
CONNECT_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class OpenReply:
    """A successful answer of which nothing but the head was read. chunks: the rest; closing them ends it."""

    head: Reply
    chunks: AsyncGenerator[bytes, None]


class Transport(Protocol):
    """Sends requests to one server, each once. Both ways raise `ServerProblem` for an answer that is no success, and
    `ServerUnreachable` for none: `ConnectionFailed` if the server cannot have had the request, `ConnectionLost` if its
    answer broke off."""

    @property
    def url(self) -> str:
        """Of the server."""

    async def answer(self, request: HttpRequest) -> Reply:
        """Read to its end."""

    async def open(self, request: HttpRequest) -> OpenReply:
        """To be read as it comes."""

    async def close(self) -> None:
        """Ends all connections."""


def base_url(text: str) -> str:
    """A server's address without the slash that a path begins with."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidInput("url", text, "an address such as http://127.0.0.1:8000")
    return str(url).rstrip("/")


def key_headers(api_key: str | None) -> dict[str, str]:
    """What every request of a holder of this key says. A key that HTTP cannot carry is refused, and not shown."""
    if api_key is None:
        return {}
    if not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise InvalidInput("api_key", "what was given", "printable ASCII without spaces around it")
    return {"Authorization": f"Bearer {api_key}"}
