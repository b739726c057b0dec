"""An event loop on a thread of its own, for whoever is on other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from elit_serve.errors import EngineStopped

T = TypeVar("T")


class LoopThread:
    """Runs coroutines until it is closed. Whoever waits for one then is told so: none is left without an end."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._begun: set[asyncio.Task[Any]] = set()  # and not ended
        self._beginning = threading.Lock()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """From any thread. Cancelling the future cancels the work, as closing does, but not before its first step.

        Raises `EngineStopped` once it is closed.
        """
        with self._beginning:
            if self._is_closing:
                work.close()
                raise EngineStopped("the engine is not running")
            return asyncio.run_coroutine_threadsafe(self._noted(work), self._loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Waits for what it gives, on another thread than the loop's.

        Raises `EngineStopped` if it is closed before or meanwhile, and if there is nothing within `timeout_s`.
        """
        begun = self.begin(work)
        try:
            return begun.result(timeout_s)
        except CancelledError:
            raise EngineStopped("the engine is not running") from None
        except TimeoutError:
            begun.cancel()
            raise EngineStopped("the engine does not answer") from None

    async def cancel_others(self) -> None:
        """On its loop, all that was begun before; who waits for it is told as at the end. More may be begun."""
        await _cancelled(self._begun - {asyncio.current_task()})

    def close(self, last: Callable[[], Awaitable[None]]) -> None:
        """Cancels what is left, runs `last`, and ends the thread. Who comes later waits until that is done."""
        with self._beginning:
            is_first, self._is_closing = not self._is_closing, True
        if is_first:
            try:
                asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
            finally:
                self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _noted(self, work: Coroutine[Any, Any, T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._begun.add(task)
        try:
            return await work
        finally:
            self._begun.remove(task)

    async def _end(self, last: Callable[[], Awaitable[None]]) -> None:
        """What was begun is cancelled first: it may use what `last` closes, and what that has running here."""
        await _cancelled(self._begun)
        await last()
        await _cancelled(asyncio.all_tasks() - {asyncio.current_task()})


async def _cancelled(tasks: Iterable[asyncio.Task[Any]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
