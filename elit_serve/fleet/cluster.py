"""Whether those processes of Ray are there that this one cannot do without: the raylet of its machine, and the head.

Ray does not say so: its calls wait for ever for a raylet that nobody starts again, and a process whose Ray has lost its
head is ended by Ray after a minute, in the middle of whatever it does. Knows of Ray only where these processes listen.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from elit_serve.clock import Clock, MonotonicClock
from elit_serve.errors import EngineStopped

CONNECT_S = 1.0
LOOK_S = 0.2
SHORT_OF = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)  # here, not there
INTERRUPTION = signal.SIGUSR1  # whose handler raises the only exception that Ray lets out of its waits


class ClusterLost(EngineStopped):
    """No replica will come any more: whoever started this server should start it anew."""


@dataclass(frozen=True, kw_only=True)
class Post:
    """Where a process of Ray's listens, and how long it may be silent."""

    name: str
    host: str
    port: int
    patience_s: float

    def answers(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), CONNECT_S).close()
        except OSError as error:
            return error.errno in SHORT_OF  # which says nothing of whom it was for
        return True


class Cluster:
    """A Ray that this process is in. address: of its head."""

    def __init__(self, address: str, posts: Sequence[Post], clock: Clock | None = None) -> None:
        self.address = address
        self._posts = posts
        self._clock = clock or MonotonicClock()
        self._silent_since_s: dict[Post, float] = {}

    def check(self) -> None:
        """Raises `ClusterLost`. Takes a tenth of a millisecond where all is well, and at most a second for a post."""
        for post in self._posts:
            if post.answers():
                self._silent_since_s.pop(post, None)
                continue
            now_s = self._clock.now()
            if now_s - self._silent_since_s.setdefault(post, now_s) >= post.patience_s:
                raise ClusterLost(f"Ray is gone: {post.name} does not answer at {post.host}:{post.port}")

    @contextmanager
    def watched(self) -> Iterator[None]:
        """For the main thread, where it waits for Ray: the block ends with `ClusterLost` rather than never."""
        lost, is_over = list[ClusterLost](), threading.Event()

        def watch() -> None:
            while not lost and not is_over.wait(LOOK_S):
                try:
                    self.check()
                except ClusterLost as error:
                    lost.append(error)
                    os.kill(os.getpid(), INTERRUPTION)

        before = signal.signal(INTERRUPTION, signal.default_int_handler)
        watching = threading.Thread(target=watch, name="elit-ray-watch", daemon=True)
        watching.start()
        try:
            yield
        except KeyboardInterrupt:
            if lost:
                raise lost[0] from None
            raise
        finally:
            is_over.set()
            watching.join()
            signal.signal(INTERRUPTION, before)
