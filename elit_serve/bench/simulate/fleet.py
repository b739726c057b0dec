"""Several schedulers, each on a simulated device of its own, on one virtual clock, and who routes between them.

The replica that is asked decides alone. A refusal goes on to the next; an order is refused if all refuse.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from elit_serve.bench.simulate.simulation import Fate, fate_of
from elit_serve.scheduler import RequestScheduler
from elit_serve.scheduler.drive import Device, Driver
from elit_serve.scheduler.requests import Demand, Refusal


class Replica:
    """A scheduler on a device. num_here: pictures that it was asked for, took and has not ended."""

    def __init__(self, name: str, scheduler: RequestScheduler, device: Device) -> None:
        self.name, self.scheduler = name, scheduler
        self.driver = Driver(scheduler, device)

    @property
    def num_here(self) -> int:
        return self.scheduler.num_waiting + self.scheduler.num_running


class Routing(Protocol):
    """Whom to ask. Replicas are told apart by their names."""

    def order(self, pictures: Sequence[Demand], replicas: Sequence[Replica], now_s: float) -> Sequence[Replica]:
        """All that are to be asked, the first first. A router may look at `num_here` of them, which whoever routes
        alone knows, and at nothing else."""

    def asked(self, replica: Replica, pictures: Sequence[Demand], now_s: float, *, is_taken: bool) -> None:
        """This replica was asked, and has answered at once."""

    def publish(self, replica: Replica, now_s: float) -> None:
        """This replica tells of itself; called a few times a second."""

    def lost(self, replica: Replica) -> None:
        """This replica takes no orders any more."""


@dataclass(frozen=True, kw_only=True)
class FleetRun:
    """fates: one per picture, in order. num_orders: in which they came. num_asked: how often a replica was asked for
    one."""

    fates: tuple[Fate, ...]
    num_orders: int
    num_asked: int


class Fleet:
    """Replicas that take orders, and others that still work.

    digest_s: how often a replica tells of itself. replicas: those that take orders.
    """

    def __init__(self, replicas: Sequence[Replica], routing: Routing, *, digest_s: float) -> None:
        self.replicas: list[Replica] = []
        self.num_asked = 0
        self._routing, self._digest_s = routing, digest_s
        self._working: list[Replica] = []
        self._homes: dict[int, Replica] = {}
        self._tellings: list[tuple[float, str, Replica]] = []  # a heap of when who tells of itself next
        for place, replica in enumerate(replicas):
            self.add(replica, 0.0, tells_s=place * digest_s / len(replicas))

    def add(self, replica: Replica, now_s: float, *, tells_s: float | None = None) -> None:
        """From now on a replica takes orders. tells_s: when it tells of itself next, soon by default."""
        replica.driver.advance_to(now_s)
        self._routing.publish(replica, now_s)
        self.replicas.append(replica)
        self._working.append(replica)
        heappush(self._tellings, (now_s + self._digest_s if tells_s is None else tells_s, replica.name, replica))

    def drain(self, replica: Replica) -> None:
        """From now on a replica only ends what it has taken."""
        self.replicas.remove(replica)
        self._routing.lost(replica)

    def submit(self, pictures: Sequence[Demand], now_s: float) -> Refusal | None:
        """Asks one replica after the other; the first refusal of all, if nobody takes them."""
        self.advance_to(now_s)
        first: Refusal | None = None
        for replica in self._routing.order(pictures, self.replicas, now_s):
            self.num_asked += 1
            refusal = replica.scheduler.submit(pictures, now_s, is_passed_on=first is not None)
            self._routing.asked(replica, pictures, now_s, is_taken=refusal is None)
            if refusal is None:
                self._homes.update((picture.request_id, replica) for picture in pictures)
                return None
            first = first or refusal
        return first

    def advance_to(self, until_s: float) -> None:
        """Lets everything happen that happens before then, digests included."""
        while until_s < inf and self._tellings[0][0] <= until_s:
            told_s, name, replica = heappop(self._tellings)
            if replica in self.replicas:
                replica.driver.advance_to(told_s)
                self._routing.publish(replica, told_s)
                heappush(self._tellings, (told_s + self._digest_s, name, replica))
        for replica in self._working:
            replica.driver.advance_to(until_s)

    @property
    def granted(self) -> tuple[int, int]:
        """Levels and steps of all, as in `Counters`."""
        counted = [replica.scheduler.counters for replica in self._working]
        return sum(each.granted_levels for each in counted), sum(each.granted_steps for each in counted)

    def fate(self, picture: Demand, refusal: Refusal | None) -> Fate:
        """What became of a picture."""
        home = self._homes.get(picture.request_id)
        return fate_of(picture, refusal, None if home is None else home.driver.endings.get(picture.request_id))


def simulate_fleet(fleet: Fleet, orders: Sequence[tuple[Demand, ...]]) -> FleetRun:
    """Runs until nothing is left to run or to arrive. `orders` come in order of arrival."""
    refusals = [fleet.submit(order, order[0].arrived_s) for order in orders]
    fleet.advance_to(inf)
    fates = [fleet.fate(picture, refusal) for order, refusal in zip(orders, refusals, strict=True) for picture in order]
    return FleetRun(fates=tuple(fates), num_orders=len(orders), num_asked=fleet.num_asked)
