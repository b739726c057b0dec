"""Whom to ask first for an order. The replica that is asked decides alone whether it promises anything.

The denser the work of a replica, seconds of work that are due in a time over that time, the less each step may take,
and the lower is the level of all that is due then. The *strain* of a replica is the sum over all its work of the
density at which it has to be done. An order goes where the strain grows least: away from crowds, an urgent one most of
all, and a patient one where the others are due soon.

No device is denser than full: what is due before there was time for it is *late*, as orders without a promise may be,
and makes later what follows. So before strain counts by how much an order adds to that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from elit_serve.scheduler.costs import CorrectedCosts, CostTable
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.routing.digest import Digest, Due

SHORTEST_S = 0.001  # a time in which something is due, however late it is


class Candidate(NamedTuple):
    """A replica that could be asked. For each second of the order's work there, the less the better: delay_s, by how
    much later its work becomes, this order's included; harm, by how much its strain grows."""

    replica: str
    delay_s: float
    harm: float


@dataclass(kw_only=True)
class _Replica:
    """asked: the work of orders that the digest does not tell of, by their tickets, with when it is due; settled: those
    of them that were taken, of which the next digest tells. turn: rises whenever it is asked."""

    digest: Digest
    heard_s: float
    turn: float
    asked: dict[int, list[Due]] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)


class Router:
    """What one process that takes orders knows of all replicas.

    tables: the costs of each kind of device, by the name that digests have for it. Times are of the caller's clock.
    seed: draws who comes first among replicas that are equally good and were never asked, so that several routers do
        not all ask the same one.
    """

    def __init__(self, tables: Mapping[str, CostTable], *, seed: int = 0) -> None:
        self._rng = Random(f"router {seed}")
        self._costs = {device: CorrectedCosts(table) for device, table in tables.items()}
        self._replicas: dict[str, _Replica] = {}
        self._num_tickets = 0

    @property
    def replicas(self) -> tuple[str, ...]:
        """All that are known."""
        return tuple(self._replicas)

    def heard(self, replica: str, digest: Digest, now_s: float) -> None:
        """A replica has told of itself, at first or again. Raises `ValueError` for a device of unknown costs."""
        if digest.device not in self._costs:
            raise ValueError(f"device {digest.device!r} has no cost table, only {sorted(self._costs)} have")
        known = self._replicas.get(replica)
        if known is None:
            self._replicas[replica] = _Replica(digest=digest, heard_s=now_s, turn=self._rng.random())
        elif digest.number > known.digest.number:
            known.digest, known.heard_s = digest, now_s
            known.asked = {
                ticket: dues
                for ticket, dues in known.asked.items()
                if ticket not in known.settled and dues[-1].due_s > now_s  # some are never answered
            }
            known.settled.clear()

    def learn(self, device: str, table: CostTable) -> None:
        """From now on replicas of this kind of device may be heard."""
        self._costs[device] = CorrectedCosts(table)

    def lost(self, replica: str) -> None:
        """A replica takes no orders any more."""
        self._replicas.pop(replica, None)

    def rank(self, demands: Sequence[Demand], now_s: float) -> list[Candidate]:
        """All replicas for the pictures of one order, the best first; of equals, who was asked least lately."""
        work = {device: _work_of(demands, costs, now_s) for device, costs in self._costs.items()}
        found = [self._candidate(name, work[replica.digest.device], now_s) for name, replica in self._replicas.items()]
        return sorted(
            found, key=lambda candidate: (candidate.delay_s, candidate.harm, self._replicas[candidate.replica].turn)
        )

    def asked(self, replica: str, demands: Sequence[Demand], now_s: float) -> int:
        """This replica is asked to take an order, which counts as there from now on. Returns the ticket to tell of its
        answer with."""
        self._num_tickets += 1
        known = self._replicas.get(replica)
        if known is not None:
            work = _work_of(demands, self._costs[known.digest.device], now_s)
            known.turn = self._num_tickets
            known.asked[self._num_tickets] = [Due(now_s + due_s, least_s) for due_s, least_s in work]
        return self._num_tickets

    def answered(self, replica: str, ticket: int, *, is_taken: bool) -> None:
        """It has answered. What it took counts as there until a digest is heard that tells of it."""
        known = self._replicas.get(replica)
        if known is None:
            return
        if is_taken:
            known.settled.add(ticket)
        else:
            known.asked.pop(ticket, None)

    def _candidate(self, name: str, newcomers: Sequence[Due], now_s: float) -> Candidate:
        replica = self._replicas[name]
        there = self._told(replica, now_s)
        busy_s = max(0.0, replica.digest.busy_s - (now_s - replica.heard_s))
        correction, work_s = replica.digest.correction, sum([due.least_s for due in newcomers])
        (late_before, before), (late_after, after) = (
            (lateness(dues, busy_s, correction), correction * strain(dues, busy_s))
            for dues in (there, sorted([*there, *newcomers]))
        )
        return Candidate(name, (late_after - late_before) / work_s, (after - before) / work_s)

    def _told(self, replica: _Replica, now_s: float) -> list[Due]:
        """The work that is there, the first due first: what its digest tells, as far as it is not done meanwhile, and
        what was asked since."""
        age_s = now_s - replica.heard_s
        told = (Due(due_s - age_s, _left_s(due_s, least_s, age_s)) for due_s, least_s in replica.digest.dues)
        asked = (Due(due_s - now_s, least_s) for dues in replica.asked.values() for due_s, least_s in dues)
        return sorted([*told, *asked])


def lateness(dues: Iterable[Due], busy_s: float, correction: float) -> float:
    """How late all of this comes at best, each by the time that is gone when its turn comes: seconds of work times
    seconds. The first due are run first, at the lowest levels, on a device that takes `correction` times as long."""
    late, gone_s = 0.0, busy_s
    for due_s, least_s in dues:
        late += least_s * max(0.0, gone_s - due_s)
        gone_s += correction * least_s
    return late


def strain(dues: Iterable[Due], busy_s: float) -> float:
    """Seconds of work, each times the density at which it has to be done."""
    return sum([work_s * work_s / span_s for span_s, work_s in densest_stretches(dues, busy_s)])


class Stretch(NamedTuple):
    """Some time and the work that is due in it."""

    span_s: float
    work_s: float


def densest_stretches(dues: Iterable[Due], busy_s: float) -> list[Stretch]:
    """The time until the last of these are due, from the densest stretch of it to the least dense.

    If everything is to take as long as it can, the work that is due first must be done at the highest mean density of
    any time from now on, what follows at the highest of any time from then, and so on: the upper convex hull of the
    work over the time until which it is due.
    """
    found: list[Stretch] = []
    ends_s = busy_s
    for due_s, work_s in dues:
        span_s = max(due_s - ends_s, SHORTEST_S)
        ends_s += span_s
        while found and work_s * found[-1].span_s >= found[-1].work_s * span_s:
            before = found.pop()
            span_s, work_s = span_s + before.span_s, work_s + before.work_s
        found.append(Stretch(span_s, work_s))
    return found


def _left_s(due_s: float, least_s: float, age_s: float) -> float:
    """What is left of it after this time, if it is done evenly until it is due."""
    return least_s * max(0.0, 1 - age_s / due_s) if due_s > 0 else least_s


def _work_of(demands: Sequence[Demand], costs: CorrectedCosts, now_s: float) -> list[Due]:
    """From now on, on a device of these costs."""
    found = []
    for demand in demands:
        latest_s = demand.deadline_s - demand.extra_s - costs.after_s(demand.shape)
        work = Work(demand, costs, latest_s=latest_s, margin_s=0.0, order=latest_s)
        found.append(Due(latest_s - now_s, work.batched_s))
    return found
