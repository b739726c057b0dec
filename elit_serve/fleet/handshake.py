"""Two processes prove to each other that they know a key, before either reads what the other says.

The key itself is never sent: each answers the other's random number, and says which end it is, so that no answer can be
sent back.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from asyncio import StreamReader, StreamWriter
from secrets import token_bytes

KEY_BYTES = NONCE_BYTES = PROOF_BYTES = 32
HANDSHAKE_S = 5.0
SILENCE_MS = 10_000  # until a machine that confirms nothing of what it is sent is taken to be gone, else many minutes


class Stranger(Exception):
    """The other end does not know the key, or says nothing."""


async def greet(reader: StreamReader, writer: StreamWriter, key: bytes, *, as_replica: bool) -> None:
    """At either end, first of all. Raises `Stranger`."""
    own = token_bytes(NONCE_BYTES)
    try:
        _close_after_silence(writer)
        async with asyncio.timeout(HANDSHAKE_S):
            writer.write(own)
            other = await reader.readexactly(NONCE_BYTES)
            writer.write(_proof(key, other, own, of_replica=as_replica))
            told = await reader.readexactly(PROOF_BYTES)
    except (OSError, EOFError) as error:  # TimeoutError is an OSError
        raise Stranger(f"no greeting: {error!r}") from None
    if not hmac.compare_digest(told, _proof(key, own, other, of_replica=not as_replica)):
        raise Stranger("it does not know the key")


def _close_after_silence(writer: StreamWriter) -> None:
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # of Linux
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)


def _proof(key: bytes, asked: bytes, own: bytes, *, of_replica: bool) -> bytes:
    return hmac.digest(key, bytes([of_replica]) + asked + own, "sha256")
