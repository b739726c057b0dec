"""Whom to ask first for an order. The replica that is asked decides alone whether it promises anything.

A replica is worse for an order the denser the work there would be: the seconds of work that are due until then, per
second. At a density of one every step must be the cheapest there is; at a half, each may take twice as long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import merge
from math import inf
from typing import NamedTuple

from elit_serve.scheduler.costs import CorrectedCosts, CostTable
from elit_serve.scheduler.policy.pace import Work
from elit_serve.scheduler.requests import Demand
from elit_serve.scheduler.routing.digest import Digest, Due


class Candidate(NamedTuple):
    """A replica that could be asked. density: of its work with this order, the less the better; above 1 it has more
    to do than it can, and likely refuses."""

    replica: str
    density: float


@dataclass(kw_only=True)
class _Replica:
    """asked: the work of orders that the digest does not tell of, by their tickets, with when it is due; settled: those
    of them that were taken, of which the next digest tells."""

    digest: Digest
    heard_s: float
    asked: dict[int, list[Due]] = field(default_factory=dict)
    settled: set[int] = field(default_factory=set)


class Router:
    """What one process that takes orders knows of all replicas.

    tables: the costs of each kind of device, by the name that digests have for it. Times are of the caller's clock.
    """

    def __init__(self, tables: Mapping[str, CostTable]) -> None:
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
            self._replicas[replica] = _Replica(digest=digest, heard_s=now_s)
        elif digest.number > known.digest.number:
            known.digest, known.heard_s = digest, now_s
            known.asked = {ticket: dues for ticket, dues in known.asked.items() if ticket not in known.settled}
            known.settled.clear()

    def lost(self, replica: str) -> None:
        """A replica takes no orders any more."""
        self._replicas.pop(replica, None)

    def rank(self, demands: Sequence[Demand], now_s: float) -> list[Candidate]:
        """All replicas for the pictures of one order, the best first."""
        found = [
            Candidate(name, self._density(replica, self._work_of(demands, replica, now_s), now_s))
            for name, replica in self._replicas.items()
        ]
        return sorted(found, key=lambda candidate: candidate.density)

    def asked(self, replica: str, demands: Sequence[Demand], now_s: float) -> int:
        """This replica is asked to take an order, which counts as there from now on. Returns the ticket to tell of its
        answer with."""
        self._num_tickets += 1
        known = self._replicas.get(replica)
        if known is not None:
            work = self._work_of(demands, known, now_s)
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

    def _work_of(self, demands: Sequence[Demand], replica: _Replica, now_s: float) -> list[Due]:
        """From now on, on this replica's kind of device."""
        costs = self._costs[replica.digest.device]
        return [
            Due(demand.deadline_s - costs.after_s(demand.shape) - demand.extra_s - now_s, _least_s(demand, costs))
            for demand in demands
        ]

    def _density(self, replica: _Replica, newcomers: Sequence[Due], now_s: float) -> float:
        """The most work that is due until some time, over that time."""
        digest, age_s = replica.digest, now_s - replica.heard_s
        told = (Due(due_s - age_s, _left_s(due_s, least_s, age_s)) for due_s, least_s in digest.dues)
        asked = [Due(due_s - now_s, least_s) for dues in replica.asked.values() for due_s, least_s in dues]
        busy_s = max(0.0, digest.busy_s - age_s)
        densest, work_s = 0.0, 0.0
        for due_s, least_s in merge(told, sorted([*asked, *newcomers])):
            work_s += digest.correction * least_s
            if work_s > 0:
                left_s = due_s - busy_s
                densest = max(densest, work_s / left_s if left_s > 0 else inf)
        return densest


def _left_s(due_s: float, least_s: float, age_s: float) -> float:
    """What is left of it after this time, if it is done evenly until it is due."""
    return least_s * max(0.0, 1 - age_s / due_s) if due_s > 0 else least_s


def _least_s(demand: Demand, costs: CorrectedCosts) -> float:
    return Work(demand, costs, latest_s=demand.deadline_s, margin_s=0.0, order=demand.deadline_s).solo_s
