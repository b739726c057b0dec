"""A real server on a loopback port, around the tiny model and a cost table made for the tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import BaseRoute, iter_route_contexts
from fleet_link import LocalLink

from elit_serve.clock import Clock, MonotonicClock
from elit_serve.engine.executor.slots import Executor, RunningStep
from elit_serve.engine.maker import Maker
from elit_serve.engine.picture import Picture
from elit_serve.engine.pipeline import Pipeline
from elit_serve.errors import EngineStopped
from elit_serve.fleet.fleet import Fleet
from elit_serve.fleet.loop_thread import LoopThread
from elit_serve.fleet.model import FleetModel
from elit_serve.fleet.replica import Replica
from elit_serve.guests import GUESTS
from elit_serve.plans.step_kind import StepKind
from elit_serve.scheduler import CostTable
from elit_serve.server.app import create_app, stop_guests
from elit_serve.server.connections import AnnouncingServer, http_config
from elit_serve.server.engines import Engines, LoadedModel, Servable, num_slots
from elit_serve.server.run import bind
from elit_serve.server.settings import Settings

# A second of overhead, which is far above what the tiny model takes, and half a second for each level: a picture of
# 4 steps costs 1.5, 2, 2.5 and 3 s. Targets are then met whatever the machine does meanwhile.
COST = CostTable(
    steps_ms={
        (StepKind("32x32", level, weak), batch): 125.0 * level * batch
        for level in (1, 2, 3, 4)
        for weak in (None, 1, level)
        for batch in (1, 4)
    },
    overhead_ms=1000.0,
)


# For targets that a busy machine must not miss: in proportion all is as with the other, and takes no longer.
SLOW_COST = CostTable(
    steps_ms={step: 20 * milliseconds for step, milliseconds in COST.steps_ms.items()},
    overhead_ms=20 * COST.overhead_ms,
)


class UnhurriedClock:
    """A server's time, of which each look at it takes a microsecond, and the rest passes when a test says so: what is
    decided depends on no machine, however long a request is under way to where it is decided on."""

    def __init__(self) -> None:
        self._looks = count()
        self._passed_s = 1000.0

    def now(self) -> float:
        return self._passed_s + 1e-6 * next(self._looks)

    def advance(self, seconds: float) -> None:
        self._passed_s += seconds


class AsPredicted(Executor):
    """Computes, but says that a step took what was predicted: what is decided then depends on no machine."""

    cost: CostTable

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        super().launch(pictures, kind)
        return _Took(self.cost.step_ms(kind, len(pictures)))


@dataclass(frozen=True)
class _Took:
    took_ms: float

    def is_done(self) -> bool:
        return True

    def wait(self) -> float:
        return self.took_ms


class Held(AsPredicted):
    """Runs no step before the test says so."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.may_run = threading.Event()

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:  # the warm-up is not held
            assert self.may_run.wait(60)
        return super().launch(pictures, kind)


@pytest.fixture
def held() -> type[Held]:
    """For servers whose steps wait for `server.executor.may_run`."""
    return Held


class Watched(Held):
    """Notes of each launch its kind and the level of each member."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.launched: list[tuple[StepKind, list[int]]] = []

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:
            self.launched.append((kind, [picture.levels[-1] for picture in pictures]))
        return super().launch(pictures, kind)


class Stepwise(Executor):
    """Runs a step only with the test's leave."""

    def __init__(self, pipeline: Pipeline, *, num_slots: int) -> None:
        super().__init__(pipeline, num_slots=num_slots)
        self.may_run = threading.Semaphore(0)
        self.num_launched = 0

    def launch(self, pictures: Sequence[Picture], kind: StepKind) -> RunningStep:
        if pictures[0].has_caller:  # the warm-up is not held
            self.num_launched += 1
            assert self.may_run.acquire(timeout=60)
        return super().launch(pictures, kind)


@pytest.fixture
def stepwise() -> type[Stepwise]:
    """For servers that run as many steps as `server.executor.may_run` has been released for."""
    return Stepwise


def wait_for(condition: Callable[[], bool]) -> None:
    """For what another thread does in its own time."""
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)  # a busy loop would keep the other from it


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Waits for what another thread does in its own time."""
    return wait_for


@dataclass(frozen=True, kw_only=True)
class RunningServer:
    """What a test has of a server: a client for it, and the parts behind it."""

    url: str
    client: httpx.Client
    pipeline: Pipeline
    app: FastAPI
    executor: Executor
    clock: Clock

    @property
    def worker(self) -> Maker:
        """Who makes the pictures, with what replicas have done so far."""
        engines = self.app.state.service.engines
        assert isinstance(engines, Engines)
        worker = engines.default.worker
        if isinstance(worker, Fleet):
            with suppress(EngineStopped):
                worker.refresh()
        return worker

    def generate(self, body: object, accept: str = "application/json") -> httpx.Response:
        return self.client.post("/v1/generate", json=body, headers={"Accept": accept})

    def leave(self, body: object, once: Callable[[], bool]) -> None:
        """Asks, and goes without an answer once something is so, as that the request is being made."""
        content = json.dumps(body).encode()
        head = b"POST /v1/generate HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\nContent-Length: %d"
        with socket.create_connection(("127.0.0.1", self.client.base_url.port or 0)) as caller:
            caller.sendall(head % len(content) + b"\r\n\r\n" + content)
            wait_for(once)

    def health(self) -> dict[str, Any]:
        assert self.worker
        return dict(self.client.get("/health").json())

    def metric(self, name: str) -> float:
        """The sum over all models of a sample that is spelled with its other labels; 0 when it is not there yet."""
        assert self.worker
        samples = (line.rsplit(" ", 1) for line in self.client.get("/metrics").text.splitlines())
        return sum(float(value) for sample, value in samples if _without_model(sample) == name)


def _without_model(sample: str) -> str:
    return re.sub(r',?model="[^"]*"', "", sample).replace("{,", "{").replace("{}", "")


StartServer = Callable[..., RunningServer]
StartNginx = Callable[[str], str]

# One process, everything in the folder that it is started in, and otherwise what nginx does by itself.
NGINX = """
daemon off;
master_process off;
pid nginx.pid;
error_log error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    server {{
        listen 127.0.0.1:{port};
        {locations}
    }}
}}
"""


@pytest.fixture
def start_nginx(tmp_path: Path) -> Iterator[StartNginx]:
    """Starts a real nginx with these locations; gives its address."""
    binary = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    assert binary, "the package nginx is not installed"
    with ExitStack() as stack:

        def start(locations: str) -> str:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            folder = Path(stack.enter_context(TemporaryDirectory(dir=tmp_path)))
            (folder / "nginx.conf").write_text(NGINX.format(port=port, locations=locations))
            process = stack.enter_context(
                subprocess.Popen([binary, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
            )
            stack.callback(process.terminate)
            deadline_s = time.monotonic() + 30
            while not _listens(port):
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline_s
                time.sleep(0.01)
            return f"http://127.0.0.1:{port}"

        yield start


def _listens(port: int) -> bool:
    with socket.socket() as caller:
        return caller.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def running(
    pipeline: Pipeline,
    settings: Settings,
    executor: Executor,
    cost: CostTable,
    made_by: str = "worker",
    clock: Clock | None = None,
) -> Iterator[RunningServer]:
    clock = clock or UnhurriedClock()
    if isinstance(executor, AsPredicted):
        executor.cost = cost
    model = LoadedModel(pipeline=pipeline, executor=executor, cost=cost)
    with ExitStack() as stack:
        served = stack.enter_context(as_a_fleet(model, settings, clock=clock)) if made_by == "fleet" else model
        yield stack.enter_context(running_models([model], settings, [served], clock))


@contextmanager
def as_a_fleet(
    model: LoadedModel,
    settings: Settings,
    link_to: Callable[[dict[str, Replica]], LocalLink] = LocalLink,
    clock: Clock | None = None,
) -> Iterator[FleetModel]:
    """The model on one replica, which the server knows from messages alone."""
    replica = Replica("first", model, settings, clock or MonotonicClock(), transit_ms=0)
    replica.start()
    link, thread = link_to({"first": replica}), LoopThread("elit-fleet")
    try:
        yield FleetModel(link=link, thread=thread, facts=thread.run(link.facts_of_all()))
    finally:
        thread.close(link.close)
        replica.drain(0)


@contextmanager
def running_models(
    models: Sequence[LoadedModel],
    settings: Settings,
    served: Sequence[Servable] | None = None,
    clock: Clock | None = None,
) -> Iterator[RunningServer]:
    """served: in place of `models`, who makes their pictures."""
    clock = clock or MonotonicClock()
    app = create_app(served or models, settings, guests=GUESTS, clock=clock)
    engines = app.state.service.engines

    def drain() -> None:
        engines.drain(settings.drain_seconds)
        stop_guests(app)

    ready = threading.Event()
    with bind("127.0.0.1", 0) as listener:
        server = AnnouncingServer(
            http_config(app, settings),
            on_ready=ready.set,
            drain=drain,
            stop=engines.stop,
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert ready.wait(60)
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            with httpx.Client(base_url=url, timeout=60, verify=False) as client:  # reads no certificates: many begin
                first = models[0]
                yield RunningServer(
                    url=url, client=client, pipeline=first.pipeline, app=app, executor=first.executor, clock=clock
                )
        finally:
            server.should_exit = True
            engines.stop()
            stop_guests(app)
            thread.join(60)


@pytest.fixture(scope="module")
def tiny_pipeline(shared_tiny_model_dir: Path) -> Pipeline:
    return Pipeline.load(shared_tiny_model_dir, device="cpu")


@pytest.fixture(scope="module")
def made_by() -> str:
    """Who makes the pictures of servers: a `worker` of their process, or a `fleet`; see the marker of this name."""
    return "worker"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    marker = metafunc.definition.get_closest_marker("made_by")
    if marker is not None and "made_by" in metafunc.fixturenames:
        metafunc.parametrize("made_by", marker.args, scope="module")


@pytest.fixture(scope="session", autouse=True)
def documents_made_once() -> Iterator[None]:
    """FastAPI takes three quarters of the time in which a server starts for its document, which depends on its routes
    alone."""
    made: dict[object, str] = {}

    def document(*, routes: Sequence[BaseRoute], **about: Any) -> dict[str, Any]:
        documented = [each for each in iter_route_contexts(routes) if getattr(each, "include_in_schema", False)]
        key = (about["title"], *[(each.path, each.endpoint) for each in documented])
        if key not in made:
            made[key] = json.dumps(get_openapi(routes=routes, **about))
        return dict(json.loads(made[key]))  # to which the server adds what its settings make of it

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastapi.applications.get_openapi", document)
        yield


@pytest.fixture
def start_server(tiny_pipeline: Pipeline, made_by: str) -> Iterator[StartServer]:
    """Starts servers of one's own: with other settings, costs or executors, or around another model."""
    with ExitStack() as stack:

        def start(
            pipeline: Pipeline = tiny_pipeline,
            settings: Settings | None = None,
            executor: type[Executor] = AsPredicted,
            cost: CostTable = COST,
            clock: Clock | None = None,
        ) -> RunningServer:
            settings = settings or Settings(response_ms=0)
            slots = executor(pipeline, num_slots=num_slots(settings))
            return stack.enter_context(running(pipeline, settings, slots, cost, made_by, clock))

        yield start


@pytest.fixture(scope="module")
def server(tiny_pipeline: Pipeline, made_by: str) -> Iterator[RunningServer]:
    """One server for all tests of a file that leave it as it is."""
    settings = Settings(response_ms=0, max_images=4)
    executor = AsPredicted(tiny_pipeline, num_slots=num_slots(settings))
    with running(tiny_pipeline, settings, executor, COST, made_by) as started:
        yield started
