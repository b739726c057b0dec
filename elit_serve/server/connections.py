"""Connections on which nothing moves are closed, so that nobody holds a place, or a descriptor, for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MIN_READ_BYTES = 16 << 10  # of an answer that waits for its reader, in the time that a connection may stand still


class ImpatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol ends a connection if its next request does not begin within `timeout_keep_alive`. This one
    has the same patience with the first request, with one that has begun and is not there whole, and with a reader
    of whom more than the buffers hold is still to be read.

    uvicorn tells the last request of a connection that is lost. Where several were sent at once, the one that is
    being answered must know.
    """

    _answered: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._sending = _Timer(self.loop, self.timeout_keep_alive)  # until the caller has sent a request
        self._reading = _Timer(self.loop, self.timeout_keep_alive)  # until the caller has read enough of an answer
        self._wait_for_request()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if not self._sending.is_running:
            self._wait_for_request()

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        if not self.pipeline:
            self._answered = self.cycle

    def on_response_complete(self) -> None:
        if self.pipeline:
            self._answered = self.pipeline[-1][0]
        super().on_response_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._sending.stop()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._wait_for_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reading.stop()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.response_complete:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)
        self._sending.stop()
        self._reading.stop()

    def _wait_for_request(self) -> None:
        self._sending.start(self._end_sending)

    def _end_sending(self) -> None:
        if self._is_answering():  # what is sent meanwhile may not even be read
            self._wait_for_request()
        else:
            self.transport.abort()

    def _is_answering(self) -> bool:
        return bool(self.pipeline) or (
            self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
        )

    def _wait_for_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reading.start(lambda: self._end_reading(unread))

    def _end_reading(self, unread_before: int) -> None:
        if unread_before - self.transport.get_write_buffer_size() >= MIN_READ_BYTES:
            self._wait_for_reader()
        else:
            self.transport.abort()


class _Timer:
    """Does something after `seconds`, unless it is stopped."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop = loop
        self._seconds = seconds
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._handle is not None

    def start(self, action: Callable[[], None]) -> None:
        self._handle = self._loop.call_later(self._seconds, action)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
