"""What a worker is making at one moment, for somebody who watches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from elit_serve.engine.cost import Cost
from elit_serve.engine.picture import Picture
from elit_serve.plans.skips import Skips
from elit_serve.scheduler.core import Counters, RequestScheduler


@dataclass(frozen=True, kw_only=True)
class PictureInFlight:
    """A picture as it was at one moment. words, is_personal: of its condition. num_steps: of its grid. age_s: since it
    was asked for. left_s: until it should be there; below 0 it is late."""

    picture_id: int
    words: str
    is_personal: bool
    shape: str
    state: Literal["waiting", "running", "finishing"]
    levels: tuple[int, ...]
    strides: tuple[int, ...]
    num_steps: int
    skips: Skips
    age_s: float
    left_s: float
    is_promised: bool
    cost: Cost

    @classmethod
    def of(cls, picture: Picture, now_s: float) -> Self:
        order = picture.caller.order
        return cls(
            picture_id=picture.picture_id,
            words=picture.condition.words,
            is_personal=picture.condition.is_personal,
            shape=picture.shape,
            state=picture.state,
            levels=tuple(picture.levels),
            strides=tuple(picture.strides),
            num_steps=picture.num_steps,
            skips=order.skips,
            age_s=now_s - order.arrived_s,
            left_s=order.deadline_s - now_s,
            is_promised=order.is_hard,
            cost=picture.cost,
        )


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

    @classmethod
    def of(cls, pictures: Sequence[Picture], scheduler: RequestScheduler, now_s: float, *, max_pictures: int) -> Self:
        """pictures: all, in order of arrival. max_pictures: that are told one by one."""
        shown = sorted(pictures, key=lambda picture: not picture.levels)[:max_pictures]
        return cls(
            now_s=now_s,
            num_pictures=len(pictures),
            num_waiting=scheduler.num_waiting,
            num_running=scheduler.num_running,
            correction=scheduler.correction(now_s),
            counters=scheduler.counters,
            pictures=tuple(PictureInFlight.of(picture, now_s) for picture in shown),
        )
