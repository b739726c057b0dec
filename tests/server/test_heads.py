"""Heads, trailers and chunks have bounds before anybody's key is asked for; a proposed upgrade changes nothing."""

from __future__ import annotations

import itertools
import json
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

START = b"POST /v1/plan HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
CHUNKED = START + b"Transfer-Encoding: chunked\r\n\r\n"
BODY = b'{"label": "tulip"}'
WHOLE = START + b"Content-Length: 18\r\n\r\n" + BODY
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
MOST_SENT = 1 << 20


@contextmanager
def connection(server: Any) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", server.client.base_url.port), timeout=20) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield caller


def answers(caller: socket.socket, count: int | None = None) -> list[tuple[int, dict[str, str], bytes]]:
    """(status, headers, body) of so many answers, or of all until the connection is closed."""
    found = []
    with caller.makefile("rb") as stream:
        while len(found) != count and (line := stream.readline()):
            status, headers = int(line.split()[1]), {}
            while (line := stream.readline().strip()) != b"":
                name, _, value = line.decode().partition(": ")
                headers[name.lower()] = value
            found.append((status, headers, stream.read(int(headers["content-length"]))))
            if headers.get("connection") == "close":
                with suppress(OSError):  # which it may have closed by now
                    caller.shutdown(socket.SHUT_WR)  # the server need not wait for more
    return found


def send(caller: socket.socket, *parts: bytes, endless: Iterable[bytes] = ()) -> None:
    """Sends the parts one by one; of what is endless a megabyte, or until nobody listens any more."""
    for part in parts:
        caller.sendall(part)
    num_sent = 0
    for part in endless:
        try:
            caller.sendall(part)
        except OSError:
            return
        num_sent += len(part)
        if num_sent > MOST_SENT:
            return


def in_one_byte_chunks(body: bytes) -> bytes:
    return b"".join(b"1\r\n%c\r\n" % byte for byte in body)


ENDLESS = {
    "a path": (b"GET /", itertools.repeat(b"x" * 4096)),
    "a line": (START + b"X: ", itertools.repeat(b"x" * 4096)),
    "a line in small pieces": (START + b"X: ", itertools.repeat(b"x" * 50)),
    "a name": (START, itertools.repeat(b"x" * 4096)),
    "short lines": (START, itertools.repeat(b"a:b\r\n" * 500)),
    "one line after the other": (START, itertools.repeat(b"a:b\r\n")),
    "nothing before a request": (b"", itertools.repeat(b"\r\n" * 2048)),
    "a trailer": (CHUNKED + b"0\r\nX: ", itertools.repeat(b"x" * 4096)),
    "trailers": (CHUNKED + b"0\r\n", itertools.repeat(b"a:b\r\n" * 500)),
    "a chunk's extension": (CHUNKED + b"1;x=", itertools.repeat(b"x" * 4096)),
    "a trailer after a large body": (CHUNKED + b"80000\r\n" + b" " * 0x80000 + b"\r\n0\r\nX: ", [b"x" * 300_000]),
    "the smallest chunks": (CHUNKED, itertools.repeat(in_one_byte_chunks(b" " * 500))),
    "small chunks with extensions": (CHUNKED, itertools.repeat(b"2;some=thing\r\n  \r\n" * 100)),
}


@pytest.mark.parametrize(("start", "endless"), ENDLESS.values(), ids=ENDLESS.keys())
def test_what_has_no_end_is_refused(server: Any, start: bytes, endless: Iterable[bytes]) -> None:
    with connection(server) as caller:
        send(caller, start, endless=endless)
        ((status, headers, body),) = answers(caller)
    assert (status, headers["connection"], headers["content-type"]) == (431, "close", "application/problem+json")
    assert "65536 bytes and 100 lines" in json.loads(body)["detail"]
    assert headers["x-request-id"] == json.loads(body)["request_id"]


LONG_LINES = b"".join(b"X-%d: %b\r\n" % (i, b"x" * 680) for i in range(90))
MODERATE = {
    "many long lines": START + LONG_LINES + b"Content-Length: 18\r\n\r\n" + BODY,
    "a long line": START + b"X: " + b"x" * 60_000 + b"\r\nContent-Length: 18\r\n\r\n" + BODY,
    "small chunks": CHUNKED + in_one_byte_chunks(BODY.ljust(10_000)) + b"0\r\n\r\n",
    "chunks with extensions": CHUNKED + b'12;name="value"\r\n' + BODY + b"\r\n0\r\n\r\n",
    "a large body": START + b"Content-Length: 1000000\r\n\r\n" + BODY.ljust(1_000_000),
    "trailers": CHUNKED + b"12\r\n" + BODY + b"\r\n0\r\n" + b"X: y\r\n" * 90 + b"\r\n",
}


@pytest.mark.parametrize("request_", MODERATE.values(), ids=MODERATE.keys())
def test_what_is_within_the_bounds_is_served_however_it_comes(server: Any, request_: bytes) -> None:
    with connection(server) as caller:
        send(caller, request_ + request_)
        assert [status for status, _, _ in answers(caller, 2)] == [200, 200]
        send(caller, *(request_[i : i + 1009] for i in range(0, len(request_), 1009)))
        assert [status for status, _, _ in answers(caller, 1)] == [200]


@pytest.mark.parametrize(
    ("last", "status"),
    [
        (START + b"X: " + b"x" * 100_000, 431),
        (START + b"X: y\r\n" * 200, 431),
        (CHUNKED + b"12\r\n" + BODY + b"\r\n0\r\nX: " + b"x" * 100_000, 431),
        (CHUNKED + b"not a length\r\n", 400),
        (b"what is this?\r\n\r\n", 400),
        (b"CONNECT there:80 HTTP/1.1\r\nHost: there\r\n\r\n", 400),
    ],
    ids=["long head", "many lines", "long trailer", "bad chunk", "no HTTP", "tunnel"],
)
@pytest.mark.parametrize("num_before", [0, 1, 3, 40])
def test_a_refusal_waits_for_the_answers_before_it(server: Any, num_before: int, last: bytes, status: int) -> None:
    with connection(server) as caller:
        send(caller, WHOLE * num_before + last + WHOLE)
        got = answers(caller)
    assert [status for status, _, _ in got] == [200] * num_before + [status]
    assert got[-1][1]["connection"] == "close"


def test_thousands_of_requests_at_once_are_answered_in_turn(server: Any) -> None:
    ask = b"GET /version HTTP/1.1\r\nX-Request-Id: %d\r\n\r\n"
    with connection(server) as caller:
        send(caller, b"".join(ask % i for i in range(3000)))
        assert [headers["x-request-id"] for _, headers, _ in answers(caller, 3000)] == [str(i) for i in range(3000)]


def test_a_trailer_is_no_header(server: Any) -> None:
    with_trailer = CHUNKED + b"12\r\n" + BODY + b"\r\n0\r\nX-Request-Id: trailing\r\n\r\n"
    with connection(server) as caller:
        send(caller, with_trailer * 3)
        assert {headers["x-request-id"] == "trailing" for _, headers, _ in answers(caller, 3)} == {False}


UPGRADED = {
    "length": START + H2C + b"Content-Length: 18\r\n\r\n" + BODY,
    "chunks": START + H2C + b"Transfer-Encoding: chunked\r\n\r\n12\r\n" + BODY + b"\r\n0\r\n\r\n",
    "websocket": START + b"Connection: upgrade\r\nUpgrade: websocket\r\nContent-Length: 18\r\n\r\n" + BODY,
    "no body": b"GET /version HTTP/1.1\r\nHost: here\r\n" + H2C + b"\r\n",
}


@pytest.mark.parametrize("request_", UPGRADED.values(), ids=UPGRADED.keys())
@pytest.mark.parametrize("piece_bytes", [1, 150, 1 << 20])
def test_an_upgrade_is_ignored_and_the_body_read(server: Any, request_: bytes, piece_bytes: int) -> None:
    requests = request_ + WHOLE + request_
    with connection(server) as caller:
        send(caller, *(requests[i : i + piece_bytes] for i in range(0, len(requests), piece_bytes)))
        assert [status for status, _, _ in answers(caller, 3)] == [200, 200, 200]
        send(caller, request_.replace(b"Connection: ", b"Connection: close, ", 1))
        assert [status for status, _, _ in answers(caller)] == [200]


def test_an_upgraded_head_has_the_same_bounds(server: Any) -> None:
    with connection(server) as caller:
        send(caller, WHOLE, START + H2C, endless=itertools.repeat(b"a:b\r\n" * 500))
        assert [status for status, _, _ in answers(caller)] == [200, 431]


@pytest.mark.parametrize("method", [b"POST", b"HEAD"])
def test_a_stream_to_http_1_0_has_no_chunks_and_ends_with_the_connection(server: Any, method: bytes) -> None:
    asked = b'{"prompt": "tulip", "stream": true, "partial_images": 1, "steps": 2}'
    request = b"POST /v1/images/generations HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
    with connection(server) as caller:
        send(caller, request % (len(asked), asked) if method == b"POST" else b"HEAD /v1/live HTTP/1.0\r\n\r\n")
        head, _, body = b"".join(iter(lambda: caller.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding" not in head
    events = [b"image_generation.partial_image", b"image_generation.completed"]
    lines = [line.partition(b": ") for line in body.splitlines()]
    assert [value for name, _, value in lines if name == b"event"] == (events if method == b"POST" else [])
    assert {name for name, _, _ in lines} <= {b"event", b"data", b""}
