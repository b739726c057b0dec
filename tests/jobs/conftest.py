"""Servers with jobs, and what a test does with them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psycopg
import pytest

from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable

Receive = Callable[[dict[str, str], bytes], tuple[int, dict[str, str]]]
ENDED = ("done", "failed", "expired", "cancelled")

CHEAP = CostTable(
    steps_ms={
        (StepKind("32x32", level, weak), batch): 1.0 * level * batch
        for level in (1, 2, 3, 4)
        for weak in (None, 1, level)
        for batch in (1, 2)
    },
    overhead_ms=1.0,
)


@dataclass(frozen=True)
class Jobs:
    """What a client does with jobs."""

    client: httpx.Client

    def post(self, key: str | None = None, **body: Any) -> httpx.Response:
        headers = {} if key is None else {"Idempotency-Key": key}
        return self.client.post("/v1/jobs", json={"label": "tulip", **body}, headers=headers)

    def accepted(self, key: str | None = None, **body: Any) -> dict[str, Any]:
        answer = self.post(key, **body)
        assert answer.status_code == 202, answer.text
        job = dict(answer.json())
        assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
        return job

    def get(self, job: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.get(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def ended(self, job: dict[str, Any], timeout_s: float = 60) -> dict[str, Any]:
        """The job, once it has ended."""
        deadline_s = time.monotonic() + timeout_s
        while (now := self.get(job))["state"] not in ENDED:
            assert time.monotonic() < deadline_s, now
            time.sleep(0.01)
        return now

    def cancel(self, job: dict[str, Any]) -> dict[str, Any]:
        answer = self.client.delete(f"/v1/jobs/{job['id']}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def picture(self, job: dict[str, Any], index: int | str = 0) -> httpx.Response:
        return self.client.get(f"/v1/jobs/{job['id']}/images/{index}")

    def listed(self, **query: Any) -> dict[str, Any]:
        answer = self.client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def events(self, job: dict[str, Any], last_event_id: str | None = None) -> Iterator[tuple[str, str, Any]]:
        """(Id, name, data) as they come."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        with self.client.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "event" in fields:
                    yield fields["id"], fields["event"], json.loads(fields["data"])
                    fields = {}


MakeJobs = Callable[[Any], Jobs]


@pytest.fixture
def jobs_of() -> MakeJobs:
    return lambda server: Jobs(server.client)


@pytest.fixture
def cheap() -> CostTable:
    """A cost table with batches of at most two."""
    return CHEAP


@pytest.fixture
def postgres_url(postgres_server_url: str) -> str:
    """Of a database that nobody has used before."""
    name = f"elit_{secrets.token_hex(6)}"
    with psycopg.connect(postgres_server_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    return postgres_server_url.removesuffix("/postgres") + f"/{name}"


@pytest.fixture(scope="session")
def postgres_server_url() -> Iterator[str]:
    """A PostgreSQL of Debian's package in a folder of its own; it refuses to be run by root."""
    as_postgres = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
    with TemporaryDirectory(prefix="postgres-") as folder:
        if as_postgres:
            shutil.chown(folder, "postgres")
        data = f"{folder}/data"
        initdb = [*as_postgres, binaries / "initdb", "-D", data, "-A", "trust", "-U", "elit", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd="/")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [*as_postgres, binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder]
        with (
            Path(folder, "log").open("w", encoding="utf-8") as log,
            subprocess.Popen(command, stderr=log, stdout=log, cwd="/"),
        ):
            try:
                wait_for_port(port)
                yield f"postgresql://elit@127.0.0.1:{port}/postgres"
            finally:
                stop = [*as_postgres, binaries / "pg_ctl", "stop", "-D", data, "-m", "immediate"]
                subprocess.run(stop, check=True, capture_output=True, cwd="/", timeout=60)


def wait_for_port(port: int) -> None:
    deadline_s = time.monotonic() + 60
    while True:
        try:
            with psycopg.connect(host="127.0.0.1", port=port, user="elit", dbname="postgres"):
                return
        except psycopg.OperationalError:
            assert time.monotonic() < deadline_s
            time.sleep(0.05)


@pytest.fixture
def start_receiver() -> Iterator[Callable[[Receive], str]]:
    """Starts HTTP servers that get webhooks: a function of (headers, body) gives the status and the headers."""
    with ExitStack() as stack:
        yield lambda receive: stack.enter_context(receiving(receive))


@contextmanager
def receiving(receive: Receive) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers = receive(dict(self.headers), body)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()
