"""What a worker is making at one moment, for somebody who watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from elit_serve.engine.picture import Picture
from elit_serve.scheduler.core import Counters, RequestScheduler


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

    @classmethod
    def of(cls, pictures: Sequence[Picture], scheduler: RequestScheduler, now_s: float, *, max_pictures: int) -> Self:
        """pictures: all, in order of arrival. max_pictures: that are told one by one."""
        return cls(
            now_s=now_s,
            num_pictures=len(pictures),
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            correction=scheduler.correction(now_s),
            counters=scheduler.counters,
            pictures=tuple(sorted(pictures, key=lambda picture: not picture.levels)[:max_pictures]),
        )
