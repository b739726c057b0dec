"""Where ingresses reach a replica past Ray: a socket that takes orders, and tells of them on the same connection.

A message through Ray costs more than a millisecond of a core at either end; here it is a tenth of that.
"""

from __future__ import annotations

import asyncio
import logging
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from secrets import token_bytes

from elit_serve.fleet.handshake import KEY_BYTES, Stranger, greet
from elit_serve.fleet.messages import HowAreYou, SentOrder
from elit_serve.fleet.replica import Replica
from elit_serve.fleet.wire import Answer, Asked, BadFrame, GivenUp, frame, read_frame

logger = logging.getLogger(__name__)

BUFFER = 1 << 20  # bytes that are read ahead
MAX_STRANGERS = 64  # connections at a time that have yet to prove that they know the key


@dataclass(frozen=True, kw_only=True)
class Address:
    """Of a replica's door. key: who does not know it is not listened to."""

    replica: str
    host: str
    port: int
    key: bytes = field(repr=False)


class Door:
    """Used on one event loop. host: an address of this machine, on which it listens; nowhere else."""

    def __init__(self, replica: Replica, host: str) -> None:
        self._replica = replica
        self._host = host
        self._key = token_bytes(KEY_BYTES)
        self._opening = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._writers: set[StreamWriter] = set()
        self._num_strangers = 0
        self._answering: set[asyncio.Task[None]] = set()

    async def address(self) -> Address:
        """It is open from now on."""
        async with self._opening:
            if self._server is None:
                self._server = await asyncio.start_server(self._visited, self._host, 0, limit=BUFFER)
        port = self._server.sockets[0].getsockname()[1]
        return Address(replica=self._replica.name, host=self._host, port=port, key=self._key)

    async def close(self) -> None:
        """When everything is told of the orders that it took, which must have ended or be about to."""
        await asyncio.gather(*self._answering, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        for writer in tuple(self._writers):
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _visited(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._greet(reader, writer)
            await self._serve(reader, writer)
        except (Stranger, BadFrame) as error:
            logger.warning("a connection was closed: %s", error)
        except (OSError, EOFError):
            pass  # who has left
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _greet(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Raises `Stranger`."""
        if self._num_strangers >= MAX_STRANGERS:
            raise Stranger("too many others have yet to say who they are")
        self._num_strangers += 1
        try:
            await greet(reader, writer, self._key, as_replica=True)
        finally:
            self._num_strangers -= 1

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        """Until the other end leaves, which gives up all that it waits for."""
        exchanges: dict[int, asyncio.Task[None]] = {}
        try:
            while True:
                number, message = await read_frame(reader)
                if isinstance(message, Asked):
                    task = exchanges[number] = asyncio.create_task(self._answer(number, message, writer))
                    self._answering.add(task)
                    task.add_done_callback(self._answering.discard)
                    task.add_done_callback(lambda _, number=number: exchanges.pop(number))  # type: ignore[misc]
                elif number in exchanges:  # it may just have ended
                    exchanges[number].cancel()
        finally:
            for task in exchanges.values():
                task.cancel()

    async def _answer(self, number: int, asked: Asked, writer: StreamWriter) -> None:
        try:
            async with aclosing(self._answers(asked)) as answers:  # type: ignore[type-var]
                async for answer in answers:
                    writer.write(frame(number, answer))
                    await writer.drain()
        except OSError:
            pass  # who has left
        except Exception:
            logger.exception("what an ingress asked could not be answered")
            writer.write(frame(number, GivenUp()))

    def _answers(self, asked: Asked) -> AsyncIterator[Answer]:
        return self._replica.make(asked) if isinstance(asked, SentOrder) else self._published(asked)

    async def _published(self, asked: HowAreYou) -> AsyncIterator[Answer]:
        yield await self._replica.publish(asked)
