"""From settings to a listening server."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import uvicorn

from elit_serve.clock import MonotonicClock
from elit_serve.engine.pipeline import Pipeline
from elit_serve.engine.profiler import Latency, device_name, latency_of
from elit_serve.errors import EngineStopped, InvalidInput
from elit_serve.server.app import create_app
from elit_serve.server.settings import Settings

T = TypeVar("T")

SHUTDOWN_SECONDS = 30  # for requests that are under way


class AnnouncingServer(uvicorn.Server):
    """A server that calls `on_ready` once it listens."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()


def serve(settings: Settings, announce: Callable[[str], None]) -> None:
    """Serves until interrupted. `announce` is told in one line what is served, and where, once it is.

    The address is taken first, so that a port in use is found out before a model is loaded.
    """
    logging.basicConfig(level=settings.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    with bind(settings.host, settings.port) as listener:
        pipeline, latency = _on_a_thread_of_its_own(lambda: load_and_measure(settings))
        app = create_app(pipeline, settings, cost=latency.cost_table)
        url = _url(settings.host, listener.getsockname()[1])
        where = f"{device_name(pipeline.device)}, {latency.dtype}"
        line = f"elit-serve: {pipeline.config.name} on {where}: {url} (docs: {url}/docs)"
        config = uvicorn.Config(
            app, log_level=settings.log_level, timeout_graceful_shutdown=SHUTDOWN_SECONDS, server_header=False
        )
        server = AnnouncingServer(config, lambda: announce(line))
        with suppress(KeyboardInterrupt):  # raised again by uvicorn after an orderly shutdown
            server.run(sockets=[listener])
        if not server.started:
            raise EngineStopped("the server did not start")


def load_and_measure(settings: Settings) -> tuple[Pipeline, Latency]:
    """The model, and what its levels cost on this device."""
    pipeline = Pipeline.load(settings.model, device=settings.device, dtype=settings.dtype, threads=settings.threads)
    return pipeline, latency_of(pipeline, clock=MonotonicClock())


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


def _url(host: str, port: int) -> str:
    """Where a browser on this machine finds the server."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}"
