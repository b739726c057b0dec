"""Connections of an ingress to the doors of replicas, each with all that it asks there."""

from __future__ import annotations

import asyncio
import logging
from asyncio import Queue, StreamReader, StreamWriter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from itertools import count

from elit_serve.engine.picture import Outcome
from elit_serve.fleet.door import BUFFER, Address
from elit_serve.fleet.handshake import Stranger, greet
from elit_serve.fleet.link import ReplicaLost
from elit_serve.fleet.messages import Failed, HowAreYou, Published, Refused, Reply, SentOrder
from elit_serve.fleet.wire import Answer, Asked, BadFrame, GivenUp, frame, read_frame

logger = logging.getLogger(__name__)

CONNECT_S = 1.0  # until a door is reached: a machine that is gone does not say so
LAST = (Refused, Outcome, Failed, Published, GivenUp)  # of an exchange


class Line:
    """To one replica, until either end closes it. Used on one event loop."""

    def __init__(self, replica: str, reader: StreamReader, writer: StreamWriter) -> None:
        self._replica = replica
        self._writer = writer
        self._numbers = count()
        self._exchanges: dict[int, Queue[Answer | GivenUp]] = {}
        self._listening = asyncio.create_task(self._listen(reader))

    @classmethod
    async def to(cls, address: Address) -> Line:
        """Raises `ReplicaLost` if nobody is there, or somebody else."""
        try:
            async with asyncio.timeout(CONNECT_S):
                reader, writer = await asyncio.open_connection(address.host, address.port, limit=BUFFER)
        except OSError as error:  # TimeoutError is one
            raise ReplicaLost(address.replica) from error
        is_known = False
        try:
            await greet(reader, writer, address.key, as_replica=False)
            is_known = True
        except Stranger as error:
            raise ReplicaLost(address.replica) from error
        finally:
            if not is_known:
                writer.close()
        return cls(address.replica, reader, writer)

    @property
    def is_open(self) -> bool:
        return not self._listening.done()

    async def make(self, sent: SentOrder) -> AsyncIterator[Reply]:
        """See `Link.make`."""
        async with aclosing(self._answers(sent)) as replies:  # type: ignore[type-var]
            async for reply in replies:
                assert not isinstance(reply, Published)
                yield reply

    async def published(self, asked: HowAreYou) -> Published:
        """Raises `ReplicaLost`."""
        async with aclosing(self._answers(asked)) as answers:  # type: ignore[type-var]
            answer = await anext(answers)
            assert isinstance(answer, Published), answer
            return answer

    def close(self) -> None:
        self._writer.close()

    async def _answers(self, asked: Asked) -> AsyncIterator[Answer]:
        """Until the last. Closing the iterator tells the replica that nobody listens."""
        if not self.is_open:
            raise ReplicaLost(self._replica)
        number, answers = next(self._numbers), Queue[Answer | GivenUp]()
        self._exchanges[number] = answers
        is_over = False
        try:
            self._writer.write(frame(number, asked))
            while not is_over:
                answer = await answers.get()
                is_over = isinstance(answer, LAST)
                if isinstance(answer, GivenUp):
                    raise ReplicaLost(self._replica)
                yield answer
        finally:
            del self._exchanges[number]
            if not is_over and self.is_open:
                self._writer.write(frame(number, GivenUp()))

    async def _listen(self, reader: StreamReader) -> None:
        try:
            while True:
                number, message = await read_frame(reader)
                if isinstance(message, Asked):
                    raise BadFrame("a replica asks nothing")
                if number in self._exchanges:  # it may just have been given up
                    self._exchanges[number].put_nowait(message)
        except BadFrame as error:
            logger.error("replica %s: %s", self._replica, error)
        except (OSError, EOFError):
            pass  # it has left
        finally:
            self._writer.close()
            for answers in self._exchanges.values():
                answers.put_nowait(GivenUp())


class Lines:
    """To all replicas that are known."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    @property
    def open(self) -> list[Line]:
        return [line for line in self._lines.values() if line.is_open]

    def to(self, replica: str) -> Line:
        """Raises `ReplicaLost`."""
        line = self._lines.get(replica)
        if line is None or not line.is_open:
            raise ReplicaLost(replica)
        return line

    async def connect(self, address: Address) -> None:
        """Unless there is a line to it. Raises `ReplicaLost`."""
        self._lines = {name: line for name, line in self._lines.items() if line.is_open}
        if address.replica not in self._lines:
            self._lines[address.replica] = await Line.to(address)

    async def connect_all(self, addresses: Sequence[Address]) -> None:
        """The same of all at once. Of those that are not reached the log tells."""
        outcomes = await asyncio.gather(*map(self.connect, addresses), return_exceptions=True)
        for address, outcome in zip(addresses, outcomes, strict=True):
            if isinstance(outcome, ReplicaLost):
                where, cause = f"{address.host}:{address.port}", outcome.__cause__
                logger.warning("nobody is at %s, where replica %s should be: %r", where, address.replica, cause)
            elif outcome is not None:
                raise outcome

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
