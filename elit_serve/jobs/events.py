"""What happens to jobs, for those who follow them: kept in memory, and no more of it than tells where a job is."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field

from elit_serve.engine.picture import Preview, StepRun
from elit_serve.http.events import Mailbox


@dataclass(frozen=True)
class Happening:
    """number: rises from 1 with every event of a job. what: None says that it has started."""

    number: int
    what: StepRun | Preview | None


Follower = Mailbox[Happening]


@dataclass
class _History:
    """Of each picture the last step and the last preview are kept, in the order in which they came."""

    count: int = 0
    kept: dict[object, Happening] = field(default_factory=dict)


class JobEvents:
    """Any thread may tell and follow. token: differs from one server process to the next, like the numbers."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._histories: dict[str, _History] = {}
        self._followers: dict[str, list[Follower]] = {}
        self._is_closed = False

    def began(self, job_id: str) -> None:
        """The engine has it; what happens to others is not kept."""
        with self._lock:
            self._histories[job_id] = _History()

    def withdrew(self, job_id: str) -> None:
        """The engine did not take it after all."""
        with self._lock:
            self._histories.pop(job_id, None)

    def happened(self, job_id: str, what: StepRun | Preview | None) -> None:
        with self._lock:
            history = self._histories.get(job_id)
            if history is None:
                return
            history.count += 1
            happening = Happening(history.count, what)
            key = None if what is None else (type(what), what.seed)
            history.kept.pop(key, None)  # the new one stands last
            history.kept[key] = happening
            for follower in self._followers.get(job_id, ()):
                follower.put(happening)

    def ended(self, job_id: str) -> None:
        """The database knows how."""
        with self._lock:
            self._histories.pop(job_id, None)
            for follower in self._followers.pop(job_id, ()):
                follower.put(None)

    def follow(self, job_id: str, follower: Follower) -> list[Happening]:
        """Adds a follower, and gives what it has missed."""
        with self._lock:
            if self._is_closed:
                follower.put(None)
                return []
            self._followers.setdefault(job_id, []).append(follower)
            history = self._histories.get(job_id)
            return [] if history is None else list(history.kept.values())

    def leave(self, job_id: str, follower: Follower) -> None:
        with self._lock:
            others = [other for other in self._followers.pop(job_id, ()) if other is not follower]
            if others:
                self._followers[job_id] = others

    def close(self) -> None:
        """Lets everybody go: the server ends, and they will come back to the next one."""
        with self._lock:
            self._is_closed = True
            for follower in [follower for followers in self._followers.values() for follower in followers]:
                follower.put(None)
            self._followers.clear()
