"""Callers who are slow, silent or gone hold up nobody, and keep neither a place, nor a descriptor, nor the engine."""

from __future__ import annotations

import gc
import json
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from elit_serve.engine.executor.slots import Executor, Transfer
from elit_serve.engine.pipeline import Pipeline
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.connections import ImpatientProtocol
from elit_serve.server.settings import Settings

CHEAP = CostTable(
    steps_ms={(StepKind("32x32", level, weak), 1): 1.0 * level for level in (1, 2, 3, 4) for weak in (None, 1, level)},
    overhead_ms=1.0,
)
IMPATIENT = Settings(response_ms=0, idle_seconds=1)
Eventually = Callable[[Callable[[], bool]], None]


def connect(server: Any, receive_bytes: int | None = None) -> socket.socket:
    """A connection whose buffer for what it has not read is that small."""
    caller = socket.socket()
    if receive_bytes is not None:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    caller.settimeout(60)
    caller.connect(("127.0.0.1", server.client.base_url.port))
    return caller


def request(path: str, **fields: object) -> bytes:
    if not fields:
        return f"GET {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode()
    body = json.dumps({**fields})
    head = f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    return f"{head}\r\n\r\n{body}".encode()


def hang_up(caller: socket.socket, *, with_reset: bool) -> None:
    """Politely, or as a process that is killed with something unread."""
    if with_reset:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()


def num_read(caller: socket.socket) -> int:
    """Bytes until the connection ends."""
    total = 0
    try:
        while part := caller.recv(1 << 20):
            total += len(part)
    except ConnectionResetError:
        pass
    return total


def ended(server: Any, outcome: str) -> float:
    return float(server.metric(f'elit_generations_total{{outcome="{outcome}"}}'))


def is_at_rest(server: Any) -> bool:
    """Whether nothing is left of anybody: no picture, no slot, no request under way but the one that asks."""
    health = server.health()
    return health["running"] == health["queue_length"] == 0 and server.executor.num_free == server.executor.num_slots


class SlowlyDecoded(Executor):
    """Hands pictures out only while the test lets it."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.is_decoding = threading.Event()
        self.may_decode = threading.Event()
        self.may_decode.set()

    def collect(self, pictures: Any) -> Transfer:
        return _Late(super().collect(pictures), self)


@dataclass(frozen=True)
class _Late:
    transfer: Transfer
    executor: SlowlyDecoded

    def result(self) -> Any:
        self.executor.is_decoding.set()
        assert self.executor.may_decode.wait(60)
        return self.transfer.result()

    def took_ms(self) -> float:
        return self.transfer.took_ms()


@pytest.mark.parametrize("with_reset", [False, True], ids=["politely", "abruptly"])
class TestWhoLeaves:
    def test_in_the_middle_of_a_request_was_never_there(
        self, start_server: Any, eventually: Eventually, with_reset: bool
    ) -> None:
        server = start_server(cost=CHEAP)
        for part in (b"", b"POST /v1/gen", request("/v1/generate", label="tulip")[:-1]):
            caller = connect(server)
            caller.sendall(part)
            hang_up(caller, with_reset=with_reset)
        assert server.generate({"label": "tulip"}).status_code == 200
        eventually(lambda: is_at_rest(server))
        assert sum(ended(server, outcome) for outcome in ("done", "cancelled", "failed", "refused")) == 1

    def test_while_the_picture_is_encoded_is_forgotten(
        self, start_server: Any, eventually: Eventually, with_reset: bool
    ) -> None:
        server = start_server(executor=SlowlyDecoded, cost=CHEAP)
        server.executor.is_decoding.clear()
        server.executor.may_decode.clear()
        caller = connect(server)
        caller.sendall(request("/v1/generate", label="tulip"))
        assert server.executor.is_decoding.wait(60)
        hang_up(caller, with_reset=with_reset)
        eventually(lambda: ended(server, "cancelled") == 1)
        server.executor.may_decode.set()
        assert server.generate({"label": "tulip"}).status_code == 200
        eventually(lambda: is_at_rest(server))
        assert (ended(server, "done"), ended(server, "failed")) == (1, 0)

    def test_while_reading_the_answer_has_had_it(
        self, start_server: Any, eventually: Eventually, with_reset: bool
    ) -> None:
        server = start_server(cost=CHEAP)
        caller = connect(server)
        caller.sendall(request("/v1/generate", label="tulip", n=4))
        assert caller.recv(1)
        hang_up(caller, with_reset=with_reset)
        assert server.generate({"label": "tulip"}).status_code == 200
        eventually(lambda: is_at_rest(server))
        assert (ended(server, "done"), ended(server, "cancelled")) == (2, 0)

    def test_in_the_middle_of_a_stream_frees_the_device(
        self, start_server: Any, eventually: Eventually, with_reset: bool
    ) -> None:
        server = start_server(cost=CHEAP)
        caller = connect(server)
        caller.sendall(request("/v1/images/generations", prompt="tulip", stream=True, partial_images=3, steps=200))
        seen = b""
        while b"image_generation.partial_image" not in seen:
            seen += caller.recv(4096)
        hang_up(caller, with_reset=with_reset)
        eventually(lambda: ended(server, "cancelled") == 1)
        eventually(lambda: is_at_rest(server))
        assert (ended(server, "done"), ended(server, "failed")) == (0, 0)

    @pytest.mark.usefixtures("only_what_is_new_is_collected")
    def test_after_an_answer_leaves_nothing_in_memory(
        self, start_server: Any, eventually: Eventually, with_reset: bool
    ) -> None:
        server = start_server(settings=Settings(response_ms=0, idle_seconds=300), cost=CHEAP)
        caller = connect(server)
        address = caller.getsockname()
        caller.sendall(request("/version"))
        assert caller.recv(12) == b"HTTP/1.1 200"
        assert is_in_memory(address)
        hang_up(caller, with_reset=with_reset)
        eventually(lambda: not is_in_memory(address))


@pytest.fixture
def only_what_is_new_is_collected() -> Iterator[None]:
    """To look through all that other tests have left would take a second each time."""
    gc.freeze()
    yield
    gc.unfreeze()


def is_in_memory(caller_address: tuple[str, int]) -> bool:
    """Whether anything still refers to the connection of that caller."""
    gc.collect()
    return any(type(each) is ImpatientProtocol and each.client == caller_address for each in gc.get_objects())


def test_who_reads_byte_by_byte_keeps_neither_the_engine_nor_others(start_server: Any, eventually: Eventually) -> None:
    server = start_server(cost=CHEAP)
    with connect(server, receive_bytes=2048) as caller:
        caller.sendall(request("/v1/images/generations", prompt="tulip", stream=True, partial_images=3))
        read = b"".join(caller.recv(1) for _ in range(100))
        eventually(lambda: is_at_rest(server))
        assert ended(server, "done") == 1, "however much is still to be read"
        assert server.generate({"label": "tulip"}).status_code == 200
        while not read.endswith(b"\r\n0\r\n\r\n"):
            read += caller.recv(1)
    assert b"event: image_generation.completed" in read


def test_who_does_not_read_loses_his_place_to_others(start_server: Any, eventually: Eventually) -> None:
    server = start_server(settings=Settings(response_ms=0, idle_seconds=3, max_concurrent_requests=2), cost=CHEAP)
    with connect(server, receive_bytes=2048) as one, connect(server, receive_bytes=2048) as other:
        for caller in (one, other):
            caller.sendall(request("/static-offline-docs/swagger-ui-bundle.js") * 20)  # 1.4 MB each
        eventually(lambda: all(server.client.get("/version").status_code == 503 for _ in range(10)))
        assert server.generate({"label": "tulip"}).status_code == 200, "pictures have places of their own"
        assert server.client.get("/readiness").status_code == 200
        eventually(lambda: server.client.get("/version").status_code == 200)
        assert min(num_read(one), num_read(other)) < 20 << 20, "whoever was cut off first made room"
    assert server.metric('elit_requests_total{outcome="failed",route="other"}') == 0


def test_who_does_not_send_a_whole_request_is_cut_off(start_server: Any) -> None:
    server = start_server(settings=IMPATIENT)
    halves = (b"", b"POST", request("/v1/generate", label="tulip")[:-1], request("/health") + b"POST")
    with ExitStack() as stack:
        callers = [stack.enter_context(connect(server)) for _ in halves]
        for caller, half in zip(callers, halves, strict=True):
            caller.sendall(half)
        *before, after = [num_read(caller) for caller in callers]
    assert before == [0, 0, 0]
    assert after > 0, "the first request is answered"


def test_who_waits_for_his_answer_may_stand_still(start_server: Any, held: Any) -> None:
    server = start_server(settings=IMPATIENT, executor=held)
    with connect(server) as caller:
        caller.sendall(request("/v1/generate", label="tulip") + b"POST")
        caller.settimeout(2.5)
        with pytest.raises(TimeoutError):
            caller.recv(1)
        server.executor.may_run.set()
        caller.settimeout(60)
        assert caller.recv(12) == b"HTTP/1.1 200"


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """As `elit-serve serve` sees to itself; here both ends are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_idle_connections_keep_nobody_from_being_served(start_server: Any) -> None:
    server = start_server(settings=Settings(response_ms=0, idle_seconds=300), cost=CHEAP)
    with ExitStack() as stack:
        callers = [stack.enter_context(connect(server)) for _ in range(1000)]
        for caller in callers[:500]:  # half of them have asked once
            caller.sendall(request("/version"))
            assert caller.recv(12) == b"HTTP/1.1 200"
        assert num_held(server) >= 1000
        assert server.generate({"label": "tulip"}).status_code == 200


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_idle_connections_are_closed(start_server: Any, eventually: Eventually) -> None:
    server = start_server(settings=IMPATIENT, cost=CHEAP)
    with ExitStack() as stack:
        for number in range(1000):
            caller = stack.enter_context(connect(server))
            if number % 2:
                with suppress(ConnectionError):  # on a busy machine it is closed by now
                    caller.sendall(request("/version"))
        eventually(lambda: num_held(server) < 100)  # the server has closed its ends of theirs
        assert server.generate({"label": "tulip"}).status_code == 200


def num_held(server: Any) -> int:
    """Connections of which the server has not closed its end, as Linux tells it: established ones from its port."""
    port = f":{server.client.base_url.port:04X}"
    rows = (line.split() for line in Path("/proc/net/tcp").read_text(encoding="utf-8").splitlines()[1:])
    return sum(row[1].endswith(port) and row[3] == "01" for row in rows)
