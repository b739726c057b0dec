"""What becomes of requests on a simulated device: one run of one scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import inf
from time import thread_time
from typing import Any

from elit_serve.scheduler.drive import Device, Driver, Ended, Launched, Scheduler
from elit_serve.scheduler.quality import QualityTable
from elit_serve.scheduler.requests import Demand, Launch, Refusal
from elit_serve.scheduler.state import State

ROUNDING_S = 1e-9

Order = Demand | tuple[Demand, ...]  # of a picture, or of several that are taken together or not at all


@dataclass(frozen=True, kw_only=True)
class Fate:
    """What became of a picture.

    refusal: why it was not taken, or None.
    levels, strides: of the steps that were run for it, in order.
    answered_s: when its picture was out; None if it never was.
    """

    demand: Demand
    refusal: Refusal | None
    levels: tuple[int, ...]
    strides: tuple[int, ...]
    answered_s: float | None

    @property
    def is_on_time(self) -> bool:
        return self.answered_s is not None and self.answered_s <= self.demand.deadline_s + ROUNDING_S

    @property
    def latency_s(self) -> float | None:
        return None if self.answered_s is None else self.answered_s - self.demand.arrived_s

    @property
    def mean_level(self) -> float:
        return sum(self.levels) / len(self.levels)

    def worth(self, quality: QualityTable) -> float:
        """Of its picture, made by the default plan, step by step as answers tell it; a miss is worth 0."""
        return quality.of_steps(self.levels, self.strides, self.demand.coarsening) if self.is_on_time else 0.0


@dataclass(frozen=True, kw_only=True)
class SimulatedRun:
    """fates: one per picture, in order. decision_s: seconds of processor time of each call of `decide`, which the
    machine's other work does not lengthen. launches: everything that ran.
    """

    fates: tuple[Fate, ...]
    decision_s: tuple[float, ...]
    launches: tuple[Launched, ...]


class Timed:
    """A scheduler whose decisions are timed; all else is its own."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.decision_s: list[float] = []
        self._scheduler = scheduler

    def decide(self, start_s: float) -> Launch | None:
        began_s = thread_time()
        decision = self._scheduler.decide(start_s)
        self.decision_s.append(thread_time() - began_s)
        return decision

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)


def simulate(scheduler: Scheduler, orders: Sequence[Order], device: Device) -> SimulatedRun:
    """Runs until nothing is left to run or to arrive. `orders` come in order of arrival."""
    timed = Timed(scheduler)
    driver = Driver(timed, device)
    refusals: dict[int, Refusal | None] = {}
    asked = [(order,) if isinstance(order, Demand) else order for order in orders]
    for pictures in asked:
        driver.advance_to(pictures[0].arrived_s)
        refusal = driver.submit(pictures)
        refusals.update((picture.request_id, refusal) for picture in pictures)
    driver.advance_to(inf)
    return SimulatedRun(
        fates=tuple(
            fate_of(picture, refusals[picture.request_id], driver.endings.get(picture.request_id))
            for picture in chain.from_iterable(asked)
        ),
        decision_s=tuple(timed.decision_s),
        launches=tuple(driver.launches),
    )


def fate_of(demand: Demand, refusal: Refusal | None, ending: Ended | None) -> Fate:
    """What became of a picture, by what its scheduler said and how it ended there, if it was taken."""
    return Fate(
        demand=demand,
        refusal=refusal,
        levels=ending.levels if ending else (),
        strides=ending.strides if ending else (),
        answered_s=ending.at_s if ending and ending.state is State.DONE else None,
    )
