"""An event loop on a thread of its own, for whoever is on other threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from elit_serve.errors import EngineStopped

T = TypeVar("T")


class LoopThread:
    """Runs coroutines until it is closed."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def begin(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """From any thread. Cancelling the future cancels the work. Raises `EngineStopped` once it is closed."""
        if self.is_closed:
            work.close()
            raise EngineStopped("the engine is not running")
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """Waits for what it gives, on another thread than the loop's."""
        return self.begin(work).result(timeout_s)

    @property
    def is_closed(self) -> bool:
        return self.loop.is_closed()

    def close(self) -> None:
        """Cancels what is left, and ends the thread."""
        if self.is_closed:
            return
        self.run(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
