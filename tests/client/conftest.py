"""Servers that send what a test says, byte for byte."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest

StartRaw = Callable[..., tuple[str, list[bytes]]]


@pytest.fixture
def start_raw() -> Iterator[StartRaw]:
    """Starts servers that answer each connection with the next of some replies; gives URL and requests."""
    with ExitStack() as stack:
        yield lambda *replies: stack.enter_context(raw_server(*replies))


@contextmanager
def raw_server(*replies: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """Takes a request per connection, sends the next of the replies as it is, and hangs up; gives URL and requests."""
    requests: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        for reply in replies:
            try:
                connection, _ = listener.accept()
            except OSError:  # nobody comes any more
                return
            with connection, connection.makefile("rb") as incoming:
                head = b"".join(iter(incoming.readline, b"\r\n"))
                length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
                requests.append(head + b"\r\n" + incoming.read(int(length[1]) if length else 0))
                connection.sendall(reply)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
