"""What a connection may cost before anybody knows who has opened it, and when a server begins and ends: the one place
that reaches into uvicorn.

uvicorn leaves all this open: heads have no bounds, a request that offers an upgrade loses its body, HTTP/1.0 gets
chunks, a connection that stands still is kept, and whatever one sends at once is begun at once. It promises nothing
about its insides, so its version is bounded in pyproject.toml, and what is changed here is tested over real
connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from types import FrameType
from typing import cast

import httptools
import uvicorn
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import HANDLED_SIGNALS

from elit_serve.http.faults import Fault
from elit_serve.http.problems import problem
from elit_serve.server.settings import Settings

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES = 64 << 10  # of a request's head or trailers; and so much more of chunks' heads than of what is in them
MAX_HEAD_LINES = 100  # of a request's head and its trailers together
MAX_QUEUED = 16  # requests of a connection that wait for the one before; what is sent beyond them is not yet parsed
PIECE_BYTES = 1 << 10  # parsed at a time: what is not part of a body is counted as exactly as this
LINGER_SECONDS = 2.0  # in which a refused caller may read why, before the connection is closed on what he still sends
SHUTDOWN_SECONDS = 10  # for answers that are under way when the worker has stopped
MIN_READ_BYTES = 16 << 10  # of an answer that waits for its reader, in the time that a connection may stand still


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on what is no body: a request over them gets 431, one that is no HTTP gets 400.
    Either is answered when its turn has come, after what was asked before it on the same connection, and is the last.

    An `Upgrade` is ignored, as HTTP allows, and the request is answered as if there had been none. The parser cannot
    be told so: it takes what follows such a head for another protocol. So the head is parsed once more, without it.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow: _Flow = _Flow(transport)
        self._unparsed = b""
        self._num_framing_bytes = 0  # of the present request: beyond as many as there were of its body
        self._num_lines = 0
        self._is_in_head = True
        self._is_upgrade = False
        self._is_refused = False

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if not self._is_refused:
            self._parse(self._unparsed + data)

    def _parse(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._is_refused and len(self.pipeline) < MAX_QUEUED:
            piece = view[:PIECE_BYTES]
            self._num_framing_bytes += len(piece)
            view = view[self._feed(piece) :]
            self._num_framing_bytes = max(0, self._num_framing_bytes)
            if self._num_framing_bytes > MAX_HEAD_BYTES and not self._is_refused:
                self._refuse(_TOO_LARGE)
        self._unparsed = b"" if self._is_refused else bytes(view)
        self.flow.hold_back(bool(self._unparsed))

    def _feed(self, data: memoryview) -> int:
        """Has the parser take as much as it can before what was an upgrade; how many bytes these are."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._ignore_upgrade()
            num_taken: int = upgrade.args[0]
            return num_taken
        except httptools.HttpParserError:
            self._refuse(_TOO_LARGE if self._num_lines > MAX_HEAD_LINES else _INVALID)
        return len(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_lines = 0
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_lines += 1
        if self._num_lines > MAX_HEAD_LINES:
            raise ValueError("too many lines")  # the parser stops at this
        if self._is_in_head:  # a trailer is none of the headers, by which it was decided who may send a body
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_upgrade = self.parser.should_upgrade()
        if not self._is_upgrade:
            super().on_headers_complete()
            self._is_in_head = False
            if self.scope["http_version"] == "1.0":
                _end_with_connection(self.cycle)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._num_framing_bytes -= len(body)

    def on_message_complete(self) -> None:
        if not self._is_upgrade:
            super().on_message_complete()
            self._num_framing_bytes = 0
            self._is_in_head = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._parse(self._unparsed)

    def _ignore_upgrade(self) -> None:
        method = self.parser.get_method()
        if method == b"CONNECT":  # to the parser this is an upgrade in itself
            self._refuse(_INVALID)
            return
        head = b"%b %b HTTP/%b\r\n" % (method, self.url, self.parser.get_http_version().encode())
        lines = (b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade")
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._feed(memoryview(head + b"".join(lines) + b"\r\n"))

    def _refuse(self, fault: Fault) -> None:
        """Answers the present request, and reads nothing more of the connection."""
        self._is_refused = True
        self.logger.info("a request is refused before it is there whole: %s", fault.detail)  # as a line for every other
        if self._is_in_head:
            self._begin(_last_answer(fault))
        elif self.pipeline:  # it waits for those before it
            self.pipeline[0] = (self.cycle, _last_answer(fault))
        elif not self.cycle.response_started:
            _abandon(self.cycle)
            self._begin(_last_answer(fault))
        else:  # it has another answer, without having been read
            self.cycle.keep_alive = False
            if self.cycle.response_complete:
                self.transport.close()
            return
        self.cycle.more_body = self.cycle.keep_alive = False

    def _begin(self, answer: ASGI3Application) -> None:
        """Has a request that is not known whole answered in its turn."""
        super().on_message_begin()
        self.url = b"/"
        app, self.app = self.app, answer
        try:
            super().on_headers_complete()
        finally:
            self.app = app


class _Flow(FlowControl):
    """Whoever answers a request has its connection read on, but not while what was read is still to be parsed."""

    _is_held_back = False

    def hold_back(self, is_held_back: bool) -> None:
        was_held_back, self._is_held_back = self._is_held_back, is_held_back
        if is_held_back:
            self.pause_reading()
        elif was_held_back:
            self.resume_reading()

    def resume_reading(self) -> None:
        if not self._is_held_back:
            super().resume_reading()


_INVALID = Fault(status=400, detail="this is not HTTP/1.1, or nothing that this server speaks")
_TOO_LARGE = Fault(
    status=HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    detail=f"a request's head, and its trailers, may have {MAX_HEAD_BYTES} bytes and {MAX_HEAD_LINES} lines",
)


def _end_with_connection(cycle: RequestResponseCycle) -> None:
    """Has an answer of unknown length, as a stream, sent without chunks, which HTTP/1.0 does not have: it ends where
    the connection does, which uvicorn closes after every answer to HTTP/1.0. uvicorn bounds a body that has no chunks
    by `expected_content_length`, which therefore is always that of the next part."""
    send = cycle.send

    async def send_without_chunks(message: ASGISendEvent) -> None:
        if message["type"] == "http.response.body":
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    cycle.chunked_encoding = False
    cycle.send = send_without_chunks  # type: ignore[method-assign]


def _abandon(cycle: RequestResponseCycle) -> None:
    """As if its caller had left: whatever answers it is told so, and nothing of that is sent."""
    cycle.disconnected = cycle.response_complete = True
    cycle.message_event.set()


def _last_answer(fault: Fault) -> ASGI3Application:
    """Tells what is wrong, waits for the caller to leave, and closes the connection. Were it closed at once, what he
    has sent meanwhile would take the answer away from him."""
    request_id = secrets.token_hex(8)
    response = problem(fault, request_id)
    headers = [*response.raw_headers, (b"connection", b"close"), (b"x-request-id", request_id.encode())]

    async def answer(_: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": fault.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while (await receive())["type"] != "http.disconnect":
                    pass
        await send({"type": "http.response.body"})

    return cast(ASGI3Application, answer)


class ImpatientProtocol(BoundedProtocol):
    """uvicorn's protocol ends a connection if its next request does not begin within `timeout_keep_alive`. This one
    has the same patience with the first request, with one that has begun and is not there whole, and with a reader
    of whom more than the buffers hold is still to be read.

    uvicorn tells the last request of a connection that is lost. Where several were sent at once, the one that is
    being answered must know. And it keeps a connection that was reset, with all that was read from it, until its next
    request would have had to begin.
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
        self._unset_keepalive_if_required()
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


class AnnouncingServer(uvicorn.Server):
    """A server that calls `on_ready` once it listens, and does not stop listening before `drain` has returned.

    From then on the first SIGTERM or SIGINT drains: health routes say so, and new work is refused with a reason. A
    second one calls `stop`, which must make `drain` return. Before, while a model is loaded and the device warms up,
    nothing is accepted that could be finished, and signals do what they do to any process.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_ready: Callable[[], None],
        drain: Callable[[], None],
        stop: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._ways_out = iter([drain])
        self._stop = stop
        self._leaving: set[asyncio.Task[None]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            if threading.current_thread() is threading.main_thread():  # no other one may
                for number in HANDLED_SIGNALS:
                    signal.signal(number, self.handle_exit)
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would take signals before there is anything that could drain."""
        before = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
        try:
            yield
        finally:
            if self.started and threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """uvicorn's own notes the signal and raises it again at the end, which would not end in exit code 0."""
        self._loop.call_soon_threadsafe(self._leave)  # a signal handler may not wait for anything

    def _leave(self) -> None:
        self._leaving.add(asyncio.create_task(self._exit_after(next(self._ways_out, self._stop))))

    async def _exit_after(self, work: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(work)
        except Exception:
            logger.exception("the server ends without having drained")
        self.leave()

    def leave(self) -> None:
        """Ends when the answers under way are out; from any thread."""
        self.should_exit = True


def http_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """How the application is served."""
    return uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        log_level=settings.log_level,
        log_config=None,
        access_log=False,
        timeout_keep_alive=settings.idle_seconds,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        server_header=False,
        proxy_headers=False,  # a middleware believes them, which must know who the proxy is
    )
