"""Several processes that answer HTTP in front of the same replicas: one accepts what the others are too busy for.

The process that was started listens, has the replicas, watches over these processes (`ingress.py`), and answers nothing
itself. All of them accept connections from its one socket, so none that waits is lost with a process that dies, in
whose place another is started. They know each other by a folder with their sockets and what they have counted.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import SecretStr

from elit_serve.errors import EngineStopped
from elit_serve.fleet.cluster import Cluster
from elit_serve.server.settings import Settings

logger = logging.getLogger(__name__)

PAUSE_S = 1.0  # before another is started for one that has died
LOOK_S = 0.2
END_S = 10.0  # beyond what draining takes


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where an ingress is: which one of all, what it listens on, and where the replicas and the others are.

    settings: with secrets, for which reason this is told on the standard input. listener: the number of its file.
    ray_address, replicas: of the Ray, and the name of the replicas there. folder: of all ingresses.
    """

    index: int
    settings: dict[str, Any]
    listener: int
    ray_address: str
    replicas: str
    folder: str

    def as_json(self) -> str:
        return json.dumps(asdict(self), default=_revealed)


def _revealed(value: object) -> object:
    assert isinstance(value, SecretStr), type(value)
    return value.get_secret_value()


class Ingresses:
    """The processes. place: of the one with this index."""

    def __init__(self, count: int, place: Callable[[int], Place]) -> None:
        self._place = place
        self._processes: dict[int, subprocess.Popen[str]] = {index: self._started(index) for index in range(count)}
        self._is_ending = threading.Event()

    def announced(self) -> str:
        """The line of the first, when all of them listen. Raises `EngineStopped` if one ends before."""
        first, *_ = [self._line_of(process) for process in self._processes.values()]
        return first

    def end(self) -> None:
        """They drain; asked again, they end at once. From a handler of signals, too."""
        self._is_ending.set()
        for process in self._processes.values():
            process.terminate()

    def watch(self, check: Callable[[], None]) -> None:
        """Until all have ended as they were told; one that ends by itself is started again. check: raises why none
        should be any more."""
        while not self._is_ending.wait(LOOK_S):
            check()
            for index, process in self._processes.items():
                if process.poll() is not None:
                    logger.error("ingress %d ended with %d; another is started", index, process.returncode)
                    if self._is_ending.wait(PAUSE_S):
                        return  # nobody would tell another one to end
                    self._processes[index] = self._started(index)
                    if self._is_ending.is_set():  # told meanwhile, when this one was not known yet
                        self._processes[index].terminate()
                        return

    def wait(self, timeout_s: float) -> None:
        until_s = time.monotonic() + timeout_s
        for process in self._processes.values():
            try:
                process.wait(max(0.0, until_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def _started(self, index: int) -> subprocess.Popen[str]:
        place = self._place(index)
        process = subprocess.Popen(
            [sys.executable, "-m", "elit_serve.fleet.ingress"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            pass_fds=[place.listener],
        )
        assert process.stdin is not None
        process.stdin.write(place.as_json())
        process.stdin.close()
        return process

    @staticmethod
    def _line_of(process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise EngineStopped("an ingress ended before it listened, see the log")
        return line.rstrip("\n")


def serve(
    settings: Settings, announce: Callable[[str], None], *, listener: socket.socket, cluster: Cluster, replicas: str
) -> None:
    """As many as the settings say, until this process is told to end. Raises `ClusterLost`."""
    with TemporaryDirectory(prefix="elit-serve-") as folder:

        def place(index: int) -> Place:
            return Place(
                index=index,
                settings=settings.model_dump(exclude_unset=True),
                listener=listener.fileno(),
                ray_address=cluster.address,
                replicas=replicas,
                folder=folder,
            )

        ingresses = Ingresses(settings.ingress, place)
        try:
            with _at_signals(ingresses.end):
                announce(ingresses.announced())
                ingresses.watch(cluster.check)
                ingresses.wait(settings.drain_seconds + END_S)
        finally:
            ingresses.end()
            ingresses.wait(END_S)


@contextmanager
def _at_signals(do: Callable[[], None]) -> Iterator[None]:
    """Within it, in place of ending."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: do()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
