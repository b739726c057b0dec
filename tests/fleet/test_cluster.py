"""A Ray that is gone is found out, and nobody waits for it."""

from __future__ import annotations

import errno
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from elit_serve.clock import VirtualClock
from elit_serve.fleet.cluster import Cluster, ClusterLost, Post


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A process of Ray's, until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def post_of(listener: socket.socket, *, patience_s: float) -> Post:
    host, port = listener.getsockname()
    return Post(name="its head", host=host, port=port, patience_s=patience_s)


def test_one_that_is_silent_for_longer_than_others_may_need_to_start_it_again_is_lost(listener: socket.socket) -> None:
    clock, post = VirtualClock(), post_of(listener, patience_s=50)
    cluster = Cluster("", [post], clock)
    cluster.check()
    listener.close()
    clock.advance(1000)  # nobody has looked meanwhile
    cluster.check()
    clock.advance(49)
    cluster.check()
    clock.advance(1)
    with pytest.raises(ClusterLost, match=f"its head does not answer at 127.0.0.1:{post.port}"):
        cluster.check()


def test_one_that_is_there_again_in_time_has_all_of_its_time_again(listener: socket.socket) -> None:
    clock, post = VirtualClock(), post_of(listener, patience_s=50)
    cluster = Cluster("", [post], clock)
    listener.close()
    cluster.check()
    clock.advance(49)
    with socket.create_server((post.host, post.port)):
        cluster.check()
    cluster.check()
    clock.advance(49)
    cluster.check()


def test_one_that_cannot_be_asked_because_too_many_files_are_open_is_not_lost(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "create_connection", refuse)
    Cluster("", [post_of(listener, patience_s=0)]).check()


def test_who_waits_for_one_that_is_gone_is_told(listener: socket.socket) -> None:
    cluster = Cluster("", [post_of(listener, patience_s=0)])
    before = signal.getsignal(signal.SIGUSR1)
    listener.close()
    with pytest.raises(ClusterLost), cluster.watched():
        assert threading.Event().wait(60)
    assert signal.getsignal(signal.SIGUSR1) is before


def test_whoever_interrupts_a_wait_for_one_that_is_there_is_heard(listener: socket.socket) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        with pytest.raises(KeyboardInterrupt), Cluster("", [post_of(listener, patience_s=0)]).watched():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
