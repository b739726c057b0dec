"""One message handed to a receiver, of whose answer no more is read than its head.

Clients of HTTP bound how long each read takes, and not how often they read: a receiver that sends a header now and
then, or one informational answer after the other, would keep them for ever.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress

import h11
import httpx

from elit_serve.jobs.webhook_policy import Receiver

MAX_ANSWER_BYTES = 16 << 10
PIECE_BYTES = 4096
EYEBALLS_S = 0.25  # until the next of its addresses is tried beside the one before (RFC 8305)


class NoAnswer(Exception):
    """What came was not the head of an answer, or too much of it."""


async def post(receiver: Receiver, url: str, headers: Mapping[str, str], body: bytes, tls: ssl.SSLContext) -> int:
    """The status of the answer. The caller bounds the time. Raises `NoAnswer`, `OSError` and `ValueError`.

    url: its address on the receiver; nothing else is connected to, whatever it says.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_ANSWER_BYTES)
    message = _message(connection, url, headers, body)
    reader, writer = await asyncio.open_connection(
        receiver.host,
        receiver.port,
        ssl=tls if receiver.scheme == "https" else None,
        happy_eyeballs_delay=EYEBALLS_S,
    )
    try:
        writer.write(message)
        with suppress(ConnectionError):  # it may have answered without reading all
            await writer.drain()
        return await _status(connection, reader)
    finally:
        writer.transport.abort()


def _message(connection: h11.Connection, url: str, headers: Mapping[str, str], body: bytes) -> bytes:
    try:
        address = httpx.URL(url)
        own = {"Host": address.netloc.decode(), "Connection": "close", "Content-Length": str(len(body))}
        request = h11.Request(method="POST", target=address.raw_path, headers=list({**own, **headers}.items()))
        events = (request, h11.Data(data=body), h11.EndOfMessage())
        return b"".join(connection.send(event) or b"" for event in events)
    except (h11.LocalProtocolError, httpx.InvalidURL) as error:
        raise ValueError(f"a webhook cannot have this address: {error}") from error


async def _status(connection: h11.Connection, reader: asyncio.StreamReader) -> int:
    num_left = MAX_ANSWER_BYTES
    try:
        while not isinstance(event := connection.next_event(), h11.Response):
            if event is h11.NEED_DATA:
                if num_left <= 0:
                    raise NoAnswer(f"its answer does not begin within {MAX_ANSWER_BYTES} bytes")
                data = await reader.read(min(num_left, PIECE_BYTES))
                num_left -= len(data)
                connection.receive_data(data)
            elif not isinstance(event, h11.InformationalResponse):
                raise NoAnswer("it closed the connection without an answer")
    except h11.RemoteProtocolError as error:
        raise NoAnswer(str(error)) from error
    return event.status_code
