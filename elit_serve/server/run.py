"""From settings to a listening server."""

from __future__ import annotations

import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import torch
from platformdirs import user_state_path

from elit_serve.catalogue import cost_table
from elit_serve.clock import MonotonicClock
from elit_serve.engine.executor.graphs import open_executor
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profile.profiler import latency_of, prepared_steps
from elit_serve.engine.random_weights import RANDOM_RESOLUTION
from elit_serve.errors import EngineStopped, InvalidInput
from elit_serve.server.app import create_app, stop_guests
from elit_serve.server.connections import AnnouncingServer, http_config
from elit_serve.server.engines import Engines, LoadedModel, Servable, num_slots
from elit_serve.server.guest import Guest
from elit_serve.server.keys import read_keyring
from elit_serve.server.process import limit_arenas, raise_descriptor_limit, settle_heap
from elit_serve.server.settings import Settings
from elit_serve.server.sharing import listening
from elit_serve.server.simulated import check_simulation, simulated_model
from elit_serve.server.watching import logs
from elit_serve.server.watching.shared_metrics import SharedMetrics
from elit_serve.server.watching.snapshots import Snapshots

T = TypeVar("T")
logger = logging.getLogger(__name__)

SWITCH_SECONDS = 0.0005  # Python's 5 ms would let the device idle while the worker waits for its turn behind a request
EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # and the one that a browser on this machine uses


def serve(
    settings: Settings,
    announce: Callable[[str], None],
    *,
    guests: Sequence[Guest] = (),
    load: Callable[[Settings], Servable] | None = None,
    listener: socket.socket | None = None,
    meeting: Path | None = None,
    ingress: str | None = None,
) -> None:
    """Serves until it is told to end, with these guests. `announce` is told in one line what is served, and where.

    The address is taken first, so that a port in use is found out before a model is loaded. load: gives the model, by
    default into this process. listener: a bound socket in place of the settings' address. meeting: a folder of several
    servers of this machine that have the guests in turn. ingress: which of them this is, where they are one server to
    those who ask for metrics.
    """
    logs.configure(settings)
    read_keyring(settings)  # what is wrong with it is found out here too
    if settings.otlp_endpoint is not None:
        import_module("elit_serve.server.watching.tracing")  # and whether what it needs is installed
    sys.setswitchinterval(SWITCH_SECONDS)
    raise_descriptor_limit()
    limit_arenas()
    if settings.results is None and settings.port != 0:  # a port of its own: it will be started again
        settings = settings.model_copy(update={"results": str(default_results(settings.port))})
    with ExitStack() as stack:
        listener = stack.enter_context(listener or bind(settings.host, settings.port))
        beside, shared = (None, None) if meeting is None else stack.enter_context(listening(meeting))
        model = load(settings) if load else _on_a_thread_of_its_own(lambda: load_and_measure(settings))
        app = create_app([model], settings, guests=guests, shared=shared)
        line = f"elit-serve: {model.served.config.name} on {model.where}: {address_line(*listener.getsockname()[:2])}"
        engines: Engines = app.state.service.engines
        if meeting is not None and ingress is not None:
            shared_metrics = SharedMetrics(meeting, ingress, app.state.service.metrics.render)
            stack.enter_context(shared_metrics.written())
            app.state.rendered_metrics = Snapshots(shared_metrics.render)

        def drain() -> None:
            engines.drain(settings.drain_seconds)
            stop_guests(app)

        def ready() -> None:
            settle_heap()
            announce(logs.announcement(settings, line))

        def leave_if_dead(_: Future[None]) -> None:
            if engines.have_died:
                stop_guests(app)
                server.leave()

        server = AnnouncingServer(
            http_config(app, settings),
            on_ready=ready,
            drain=drain,
            stop=engines.stop,
        )
        for engine in engines.values():
            engine.worker.ended.add_done_callback(leave_if_dead)
        server.run(sockets=[listener] if beside is None else [listener, beside])
        if not server.started:
            raise EngineStopped("the server did not start")
        if engines.have_died:
            raise EngineStopped("the engine died, see the log; a supervisor should start this server again")


def default_results(port: int) -> Path:
    """The folder of jobs; servers on one machine differ in their ports."""
    return user_state_path("elit-serve") / f"jobs-{port}"


def load_and_measure(settings: Settings) -> LoadedModel:
    """The model with slots for its pictures, and what its steps cost on this device."""
    check_model(settings)
    if settings.simulate is not None:
        return simulated_model(settings)
    pipeline = _load(settings)
    served = prepared_steps(pipeline, max_batch=settings.max_batch)
    executor = open_executor(pipeline, num_slots=num_slots(settings), keeps=served.keeps)
    executor.capture(served.captures)
    executor.capture_decoding(served.batches)
    latency = latency_of(pipeline, executor, served, clock=MonotonicClock())
    cost = cost_table(latency, pipeline.config.default_shape.name)
    return LoadedModel(pipeline=pipeline, executor=executor, cost=cost)


def check_model(settings: Settings) -> None:
    """Raises `InvalidInput` for settings that contradict each other in which model is served, or how."""
    if settings.random_weights is None:
        if settings.resolution is not None:
            raise InvalidInput("resolution", settings.resolution, "a model has its own; it goes with random_weights")
    elif settings.model is not None:
        raise InvalidInput("random_weights", settings.random_weights, "a model is given; leave one of them out")
    check_simulation(settings)


def _load(settings: Settings) -> Pipeline:
    autoencoder, preview_autoencoder = (
        None if folder is None else Path(folder) for folder in (settings.autoencoder, settings.preview_autoencoder)
    )
    if settings.random_weights is None:
        return Pipeline.load(
            settings.model,
            device=settings.device,
            dtype=settings.dtype,
            quantize=settings.quantize,
            threads=settings.threads,
            autoencoder=autoencoder,
            preview_autoencoder=preview_autoencoder,
            sizes=settings.sizes,
        )
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    resolution = settings.resolution or RANDOM_RESOLUTION
    return Pipeline.random(
        settings.random_weights,
        resolution,
        device=settings.device,
        dtype=settings.dtype,
        quantize=settings.quantize,
        autoencoder=autoencoder,
        preview_autoencoder=preview_autoencoder,
        sizes=settings.sizes,
    )


def _on_a_thread_of_its_own(work: Callable[[], T]) -> T:
    """Runs `work` on a thread that ends with it, and the thread's OpenMP team with the thread.

    OpenMP keeps a team of threads for every thread that ever computed. If there are more of them than cores, all
    wait passively, and each small operation then takes 0.1 ms longer: were the model loaded on the main thread, the
    worker would take 1.45 times as long for a garden64 picture on 2 cores.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(work).result()


def bind(host: str, port: int) -> socket.socket:
    """A bound socket that does not listen yet; port 0 takes a free one."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise InvalidInput("host", host, f"an address of this machine ({error.strerror})") from None
    except UnicodeError:  # a part of more than 63 characters, or an empty one
        raise InvalidInput("host", host, "an address of this machine; no name has such parts") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRNOTAVAIL:
            raise InvalidInput("host", host, "an address of this machine") from None
        raise InvalidInput("port", port, f"a port of {host} that is free and may be taken ({error.strerror})") from None
    return listener


def address_line(host: str, port: int) -> str:
    """Where a bound server listens, and where its documentation is found from this machine.

    >>> address_line("0.0.0.0", 8000)
    'http://0.0.0.0:8000 on every address of this machine (docs: http://127.0.0.1:8000/docs)'
    """
    url = _url(host, port)
    if host in EVERY_ADDRESS:
        return f"{url} on every address of this machine (docs: {_url(EVERY_ADDRESS[host], port)}/docs)"
    return f"{url} (docs: {url}/docs)"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
