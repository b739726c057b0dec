"""What a worker is making at one moment, as values for somebody who watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from elit_serve.scheduler.core import Counters


@dataclass(frozen=True, kw_only=True)
class PictureInFlight:
    """levels: of the steps so far, the one on the device included. deadline_s: soft unless `is_promised`."""

    request_id: int
    class_id: int
    levels: tuple[int, ...]
    num_steps: int
    arrived_s: float
    deadline_s: float
    is_promised: bool

    @property
    def state(self) -> Literal["waiting", "running", "finishing"]:
        if not self.levels:
            return "waiting"
        return "finishing" if len(self.levels) == self.num_steps else "running"


@dataclass(frozen=True, kw_only=True)
class InFlight:
    """pictures: the first of those that were accepted and have not ended, `num_pictures` in all; those that run before
    those that wait, each in order of arrival.

    correction: observed over predicted step times, lately. Times are seconds of the worker's clock.
    """

    now_s: float
    num_pictures: int
    num_waiting: int
    num_running: int
    correction: float
    counters: Counters
    pictures: tuple[PictureInFlight, ...]
