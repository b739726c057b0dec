"""SIGTERM to a real `elit-serve serve` under load: what was promised is finished, nothing new is taken, exit code 0."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from elit_serve.bench.simulate.arrivals import read_arrivals

STEPS = 150  # about a second of work for the tiny model


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    client: httpx.Client
    callers: ThreadPoolExecutor

    def ask(self, **body: object) -> Future[httpx.Response]:
        return self.callers.submit(self.client.post, "/v1/generate", json={"label": "tulip", **body})

    def running(self) -> int:
        return int(self.client.get("/health").json()["running"])


StartServer = Callable[..., Server]


@pytest.fixture
def start(shared_tiny_model_dir: Path, tmp_path: Path) -> Iterator[StartServer]:
    with ExitStack() as stack:

        def start(*options: str) -> Server:
            serve = [sys.executable, "-m", "elit_serve.cli", "serve", str(shared_tiny_model_dir), "--host", "127.0.0.1"]
            process = stack.enter_context(
                subprocess.Popen(
                    [*serve, "--port", "0", "--threads", "1", *options],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
                )
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"http://127\.0\.0\.1:\d+", line)
            assert found, line
            client = stack.enter_context(httpx.Client(base_url=found[0], timeout=120))
            return Server(process, client, stack.enter_context(ThreadPoolExecutor(4)))

        yield start


def eventually(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    """For what another process does in its own time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def complaints(errors: str) -> list[str]:
    """What a server has logged, but that it measures: each of these is the first on its device."""
    return [line for line in errors.splitlines() if "elit_serve.engine.profile.profiler: measuring" not in line]


def is_ready(server: Server) -> bool:
    """As a load balancer sees it: a server that has gone is not ready either."""
    try:
        return server.client.get("/readiness").is_success
    except httpx.TransportError:
        return False


def test_what_was_accepted_is_finished(start: StartServer) -> None:
    server = start()
    accepted = [server.ask(latency_ms=100_000, steps=STEPS), server.ask(steps=STEPS, n=2)]
    eventually(lambda: server.running() == 3)
    assert is_ready(server)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: not is_ready(server))
    answers = [future.result(60) for future in accepted]
    assert [len(answer.json()["images"]) for answer in answers] == [1, 2]
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert not complaints(errors)


def test_jobs_that_wait_are_left_to_the_next_server(start: StartServer, tmp_path: Path) -> None:
    options = ("--results", str(tmp_path / "results"))
    server = start(*options)
    accepted = [server.client.post("/v1/jobs", json={"label": "tulip", "steps": STEPS}).json() for _ in range(24)]
    with server.client.stream("GET", f"/v1/jobs/{accepted[-1]['id']}/events") as followed:
        eventually(lambda: server.running() > 0)
        server.process.send_signal(signal.SIGTERM)
        events = [line for line in followed.iter_lines() if line.startswith("event: ")]
    assert events == ["event: queued"]
    _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert not complaints(errors)
    client = start(*options).client
    assert client.get(f"/v1/jobs/{accepted[0]['id']}").json()["state"] == "done"
    left = [client.delete(f"/v1/jobs/{job['id']}").json()["state"] for job in accepted]
    assert left[-1] == "cancelled"


def test_a_second_signal_ends_at_once_what_would_take_long(start: StartServer) -> None:
    """Until then a draining server sends everybody elsewhere."""
    server = start("--drain-seconds", "600", "--max-image-steps", "16000")
    unfinished = server.ask(steps=1000, n=16)
    eventually(lambda: server.running() > 0)
    server.process.send_signal(signal.SIGTERM)
    eventually(lambda: not is_ready(server))
    answers = [
        server.client.get("/health"),
        server.client.get("/readiness"),
        server.client.post("/v1/generate", json={"label": "tulip"}),
        server.client.post("/v1/images/generations", json={"prompt": "tulip"}),
        server.client.post("/v1/jobs", json={"label": "tulip"}),
    ]
    assert answers[0].json()["status"] == "draining"
    assert [answer.status_code for answer in answers] == [200, 503, 503, 503, 503]
    assert all(answer.headers["Connection"] == "close" for answer in answers)
    assert all(answer.headers["Retry-After"] == "5" for answer in answers[1:])
    server.process.send_signal(signal.SIGINT)
    answer = unfinished.result(60)
    assert answer.status_code == 503
    assert answer.json()["reason"] == "stopped"
    server.process.communicate(timeout=60)
    assert server.process.returncode == 0


def test_who_does_not_read_his_answer_does_not_hold_up_the_end(start: StartServer) -> None:
    server = start("--idle-seconds", "1")
    with socket.create_connection(("127.0.0.1", server.client.base_url.port or 0)) as caller:
        caller.sendall(b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: here\r\n\r\n" * 20)
        assert caller.recv(12) == b"HTTP/1.1 200"
        assert server.ask().result(60).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        _, errors = server.process.communicate(timeout=60)
    assert server.process.returncode == 0
    assert not complaints(errors)


def test_a_killed_server_leaves_nobody_waiting_and_its_port_and_files_to_the_next(
    start: StartServer, tmp_path: Path
) -> None:
    log = tmp_path / "arrivals.jsonl"
    options = ("--arrival-log", str(log), "--results", str(tmp_path / "results"))
    killed = start(*options)
    asked = [killed.ask(steps=1000) for _ in range(4)]
    eventually(lambda: log.exists() and log.read_text().count("\n") == 4)
    killed.process.kill()
    for answer in asked:
        assert isinstance(answer.exception(10), httpx.TransportError)
    server = start(*options, "--port", str(killed.client.base_url.port))
    assert server.ask(steps=1).result(60).status_code == 200
    server.process.send_signal(signal.SIGTERM)
    _, errors = server.process.communicate(timeout=60)
    assert not complaints(errors)
    assert len(read_arrivals(log).times_s) == 5


BROKEN = """
import uvicorn
from elit_serve.server.connections import AnnouncingServer
from elit_serve.server.run import bind

async def app(scope, receive, send): ...

def drain(): raise OverflowError

with bind("127.0.0.1", 0) as listener:
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    AnnouncingServer(config, on_ready=lambda: print("ready", flush=True), drain=drain, stop=drain).run([listener])
"""


def test_a_drain_that_fails_ends_too() -> None:
    with subprocess.Popen([sys.executable, "-c", BROKEN], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGTERM)
        try:
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    assert b"without having drained" in errors
