"""A real server on a loopback port, around the tiny model and a cost table made for the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.worker import Worker
from elit_serve.scheduler import CostTable
from elit_serve.server.app import create_app
from elit_serve.server.run import AnnouncingServer, bind
from elit_serve.server.settings import Settings

# A second of overhead, which is far above what the tiny model takes, and half a second for each level: a picture of
# 4 steps costs 1.5, 2, 2.5 and 3 s. Targets are then met whatever the machine does meanwhile.
COST = CostTable(
    step_costs_ms={(level, weak): 125.0 * level for level in (1, 2, 3, 4) for weak in (None, 1, level)},
    overhead_ms=1000.0,
)


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """What a test has of a server: a client for it, and the parts behind it."""

    url: str
    client: httpx.Client
    pipeline: Pipeline
    app: FastAPI

    @property
    def worker(self) -> Worker:
        worker = self.app.state.service.worker
        assert isinstance(worker, Worker)
        return worker

    def generate(self, body: object, accept: str = "application/json") -> httpx.Response:
        return self.client.post("/v1/generate", json=body, headers={"Accept": accept})

    def metric(self, name: str) -> float:
        """The value of one sample, spelled with its labels; 0 when it is not there yet."""
        lines = self.client.get("/metrics").text.splitlines()
        return next((float(line.rsplit(" ", 1)[1]) for line in lines if line.rsplit(" ", 1)[0] == name), 0.0)


StartServer = Callable[..., RunningServer]


@contextmanager
def running(model: Path, settings: Settings) -> Iterator[RunningServer]:
    pipeline = Pipeline.load(model, device="cpu")
    app = create_app(pipeline, settings, cost=COST)
    ready = threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = AnnouncingServer(uvicorn.Config(app, log_level="error"), ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(60)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60) as client:
                yield RunningServer(url=url, client=client, pipeline=pipeline, app=app)
        finally:
            server.should_exit = True
            thread.join(60)


@pytest.fixture
def start_server(shared_tiny_model_dir: Path) -> Iterator[StartServer]:
    """Starts servers of one's own: with other settings, or around another model directory."""
    with ExitStack() as stack:

        def start(model: Path = shared_tiny_model_dir, settings: Settings | None = None) -> RunningServer:
            return stack.enter_context(running(model, settings or Settings(headroom=0)))

        yield start


@pytest.fixture(scope="module")
def server(shared_tiny_model_dir: Path) -> Iterator[RunningServer]:
    """One server for all tests of a file that leave it as it is."""
    with running(shared_tiny_model_dir, Settings(headroom=0, max_images=4)) as started:
        yield started
