"""What happens to jobs, for those who follow them: kept in memory, and no more of it than tells where a job is."""

from __future__ import annotations

import asyncio
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from elit_serve.engine.order import Preview, StepRun


@dataclass(frozen=True)
class JobEvent:
    """number: rises from 1 with every event of a job. what: None says that it has started."""

    number: int
    what: StepRun | Preview | None


class Follower:
    """Carries events from the engine's threads to the event loop that made it; None is the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[JobEvent | None] = asyncio.Queue()

    def put(self, event: JobEvent | None) -> None:
        """From any thread."""
        with suppress(RuntimeError):  # the loop is closed: nobody follows any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, event)

    async def get(self) -> JobEvent | None:
        return await self._queue.get()


@dataclass
class _Course:
    """Of each picture the last step and the last preview are kept, in the order in which they came."""

    count: int = 0
    kept: dict[object, JobEvent] = field(default_factory=dict)


class JobEvents:
    """Any thread may tell and follow. token: differs from one server process to the next, like the numbers."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(4)
        self._lock = threading.Lock()
        self._courses: dict[str, _Course] = {}
        self._followers: dict[str, list[Follower]] = {}
        self._is_closed = False

    def began(self, job_id: str) -> None:
        """The engine has it; what happens to others is not kept."""
        with self._lock:
            self._courses[job_id] = _Course()

    def withdrew(self, job_id: str) -> None:
        """The engine did not take it after all."""
        with self._lock:
            self._courses.pop(job_id, None)

    def happened(self, job_id: str, what: StepRun | Preview | None) -> None:
        with self._lock:
            course = self._courses.get(job_id)
            if course is None:
                return
            course.count += 1
            event = JobEvent(course.count, what)
            key = None if what is None else (type(what), what.seed)
            course.kept.pop(key, None)  # the new one stands last
            course.kept[key] = event
            for follower in self._followers.get(job_id, ()):
                follower.put(event)

    def ended(self, job_id: str) -> None:
        """The database knows how."""
        with self._lock:
            self._courses.pop(job_id, None)
            for follower in self._followers.pop(job_id, ()):
                follower.put(None)

    def follow(self, job_id: str, follower: Follower) -> list[JobEvent]:
        """Adds a follower, and gives what it has missed."""
        with self._lock:
            if self._is_closed:
                follower.put(None)
                return []
            self._followers.setdefault(job_id, []).append(follower)
            course = self._courses.get(job_id)
            return [] if course is None else list(course.kept.values())

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
