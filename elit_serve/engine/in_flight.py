"""What a worker is making at one moment, for somebody who watches."""

from __future__ import annotations

from dataclasses import dataclass

from elit_serve.engine.picture import Picture
from elit_serve.scheduler.core import Counters


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """pictures: the first of those that were accepted and have not ended, `num_pictures` in all; those that run before
    those that wait, each in order of arrival. They go on while they are looked at.

    correction: observed over predicted step times, lately. Times are seconds of the worker's clock.
    """

    now_s: float
    num_pictures: int
    num_waiting: int
    num_running: int
    correction: float
    counters: Counters
    pictures: tuple[Picture, ...]
