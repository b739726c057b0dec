"""A line of JSON for each valid request: what was asked and when, as `simulate --trace` and `bench --trace` replay it.

A thread of its own writes the lines, so no answer waits for a disk. Where a disk is full or too slow, lines are lost.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener, RotatingFileHandler
from pathlib import Path
from queue import Full, Queue
from statistics import fmean

from elit_serve.clock import Clock
from elit_serve.engine.order import Order
from elit_serve.errors import InvalidInput
from elit_serve.files.arrival_log import LoggedRequest
from elit_serve.http.schemas import GenerateRequest
from elit_serve.plans.levels import Budgets

logger = logging.getLogger(__name__)

MAX_UNWRITTEN = 10_000  # lines that wait for the disk
PATIENCE_S = 5.0  # with the disk, at the end


class ArrivalLog:
    """Appends to `file`, and once it holds half of `max_bytes`, makes it `file`.1 and begins anew.

    Raises `InvalidInput` if it cannot be opened.
    """

    def __init__(self, file: Path, *, max_bytes: int, clock: Clock) -> None:
        self._epoch_s = time.time() - clock.now()  # once, so that no change of the time of day gets between arrivals
        try:
            self._writer = _Writer(file, maxBytes=max_bytes // 2, backupCount=1, encoding="utf-8")
        except OSError as error:
            raise InvalidInput("arrival_log", str(file), f"a file that can be written ({error.strerror})") from None
        queue: Queue[logging.LogRecord] = Queue(MAX_UNWRITTEN)
        self._sender = _Sender(queue)
        self._listener = _Listener(queue, self._writer)

    def start(self) -> None:
        self._listener.start()

    def stop(self) -> None:
        """Returns when all lines are written, as far as the disk takes them."""
        with suppress(Full):  # the disk takes nothing
            self._listener.stop()
        with suppress(OSError):  # what a full disk has not taken
            self._writer.close()

    def record(self, request: GenerateRequest, order: Order, budgets: Budgets) -> None:
        """Without its texts: of a picture the class is told, and of a prompt nothing."""
        logged = LoggedRequest(
            arrived_s=round(self._epoch_s + order.arrived_s, 6),
            latency_ms=request.latency_ms,
            n=request.n,
            budget=None if order.pinned is None else budgets.of_level(fmean(order.pinned)),
            min_budget=request.min_budget,
            max_budget=request.max_budget,
            min_quality=request.min_quality,
            steps=request.steps,
            size=request.size,
            best_effort=request.best_effort,
            priority=request.priority,
            class_id=order.condition.facts().get("class_id"),
        )
        self._sender.handle(logging.makeLogRecord({"msg": logged.line}))


class _Writer(RotatingFileHandler):
    """Goes on after an error, and tells of the first one."""

    has_warned = False

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802
        if not self.has_warned:
            self.has_warned = True
            logger.warning("the arrival log lacks requests, because it cannot be written: %s", sys.exception())


class _Listener(QueueListener):
    """Ends after what is waiting, also if that is all that may wait."""

    def enqueue_sentinel(self) -> None:
        self.queue.put(self._sentinel, timeout=PATIENCE_S)  # type: ignore[attr-defined]


class _Sender(QueueHandler):
    """Gives lines to the writer, as long as it keeps up; otherwise tells so, once."""

    has_warned = False

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802
        if not self.has_warned:
            self.has_warned = True
            logger.warning("the arrival log lacks requests, because its disk is too slow")
